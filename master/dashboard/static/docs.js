// The OpenAPI document as a page: the routes, their parameters and their answers.

import {fill, h, link} from "./dom.js";

const main = document.getElementById("main");

/** Describes a schema in a few words, with a link if it has a name. */
function words(schema) {
  if (!schema) return "anything";
  if (schema.$ref) {
    const name = schema.$ref.split("/").at(-1);
    return link(`#${name}`, name);
  }
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  const several = schema.anyOf ?? schema.allOf ?? schema.oneOf;
  if (several) return several.flatMap((one, place) => (place ? [" or ", words(one)] : [words(one)]));
  if (schema.type === "array") return ["list of ", words(schema.items ?? schema.prefixItems?.[0])].flat();
  if (schema.additionalProperties && schema.additionalProperties !== true) return ["name to ", words(schema.additionalProperties)].flat();
  return schema.type ?? "anything";
}

function operation(method, path, told) {
  const rows = (told.parameters ?? []).map((one) =>
    h("tr", {}, h("th", {scope: "row"}, h("code", {}, one.name)), h("td", {}, `in ${one.in}${one.required ? "" : ", optional"}`), h("td", {}, words(one.schema)), h("td", {}, one.description ?? one.schema?.description ?? "")),
  );
  const body = told.requestBody?.content?.["application/json"]?.schema;
  const content = told.responses?.["200"]?.content ?? {};
  const kind = Object.keys(content)[0];
  return h("section", {class: "card"},
    h("h2", {}, h("code", {}, `${method.toUpperCase()} ${path}`)), h("p", {}, told.description ?? told.summary ?? ""),
    rows.length ? h("div", {class: "scroll"}, h("table", {}, h("tbody", {}, rows))) : null,
    body ? h("p", {}, "Body: ", words(body)) : null,
    kind ? h("p", {}, `Answer, ${kind}: `, words(content[kind].schema)) : null);
}

function model(name, schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([field, one]) => h("tr", {}, h("th", {scope: "row"}, h("code", {}, field)), h("td", {}, words(one)), h("td", {}, one.description ?? "")));
  return h("section", {class: "card", id: name}, h("h2", {}, name), h("p", {}, schema.description ?? ""), h("div", {class: "scroll"}, h("table", {}, h("tbody", {}, rows))));
}

const document_ = await (await fetch("/api/openapi.json")).json();
fill(main,
  h("h1", {}, `${document_.info.title} ${document_.info.version}`), h("p", {}, document_.info.description), h("p", {}, link("/api/openapi.json", "The OpenAPI document")),
  h("h2", {}, "Routes"),
  h("div", {class: "stack"}, Object.entries(document_.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, told]) => operation(method, path, told)))),
  h("h2", {}, "Schemas"), h("div", {class: "stack"}, Object.entries(document_.components?.schemas ?? {}).map(([name, schema]) => model(name, schema))));
if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
