// Selects a part of an axis of the parallel coordinates by dragging along it.

import {selections} from "./filter.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 34; // pixels in which an axis can be grasped
const CLICK = 4; // pixels; a shorter drag is a click
const AT_END = 0.01; // share of an axis; a part that begins this close to its end is open there

/**
 * Offers the selection over a drawn figure, and shows what the filter selects already.
 * `chosen` is called with the name of an axis and `{low, high}`, `{options}` or null.
 */
export class Brush {
  constructor(plot, chosen) {
    this.plot = plot;
    this.chosen = chosen;
    this.svg = make("svg", {class: "brush", "aria-hidden": "true"});
    plot.after(this.svg);
  }

  /** Draws the parts anew: after each drawing of the figure, and when its size changes. */
  draw(axes, filter) {
    const layout = this.plot._fullLayout;
    if (!axes?.length || !layout?.xaxis) return this.svg.replaceChildren();
    const x = (place) => layout.xaxis._offset + layout.xaxis.l2p(place);
    const y = (share) => layout.yaxis._offset + layout.yaxis.l2p(share);
    const width = Math.min(WIDTH, x(1) - x(0));
    const known = selections(filter);
    const strips = axes.map((axis, place) => {
      const strip = make("rect", {class: "strip", x: x(place) - width / 2, width, y: y(1) - 8, height: y(0) - y(1) + 16, "data-axis": axis.name});
      const part = make("rect", {class: "part", x: x(place) - 11, width: 13, rx: 2});
      const demand = known.get(axis.name);
      show(part, demand ? partOf(axis, demand) : null, y);
      this.#listen(strip, part, axis, y, Boolean(demand));
      return [strip, part];
    });
    this.svg.replaceChildren(...strips.flat());
  }

  #listen(strip, part, axis, y, has) {
    const shareAt = (event) => {
      const inside = event.clientY - this.svg.getBoundingClientRect().top;
      return Math.min(1, Math.max(0, (y(0) - inside) / (y(0) - y(1))));
    };
    strip.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      strip.setPointerCapture(event.pointerId);
      const from = {share: shareAt(event), y: event.clientY};
      const drag = (now) => show(part, [Math.min(from.share, shareAt(now)), Math.max(from.share, shareAt(now))], y);
      strip.addEventListener("pointermove", drag);
      strip.addEventListener("pointercancel", () => strip.removeEventListener("pointermove", drag), {once: true});
      strip.addEventListener("pointerup", (end) => {
        strip.removeEventListener("pointermove", drag);
        const ends = [from.share, shareAt(end)].sort((a, b) => a - b);
        if (Math.abs(end.clientY - from.y) >= CLICK) this.chosen(axis.name, demandOf(axis, ends));
        else if (has) this.chosen(axis.name, null);
        else if (axis.options) this.chosen(axis.name, demandOf(axis, ends));
        else show(part, null, y);
      }, {once: true});
    });
  }

  close() {
    this.svg.remove();
  }
}

function make(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function show(part, ends, y) {
  part.style.display = ends ? "" : "none";
  if (!ends) return;
  part.setAttribute("y", y(ends[1]) - 3);
  part.setAttribute("height", y(ends[0]) - y(ends[1]) + 6);
}

const onScale = (axis, value) => (axis.log ? Math.log10(value) : value);

/** Returns a part of an axis, as two shares of its length, as what the filter demands. */
function demandOf(axis, [from, to]) {
  if (axis.options) {
    const last = Math.max(1, axis.options.length - 1);
    const inside = axis.options.filter((_, place) => place / last >= from && place / last <= to);
    const nearest = axis.options[Math.round(((from + to) / 2) * (axis.options.length - 1))];
    if (inside.length === axis.options.length && inside.length > 1) return null;
    return {options: inside.length ? inside : [nearest]};
  }
  const [low, high] = [onScale(axis, axis.low), onScale(axis, axis.high)];
  const valueAt = (share, round) => {
    const value = low + share * (high - low);
    return axis.whole ? round(axis.log ? 10 ** value : value) : Number((axis.log ? 10 ** value : value).toPrecision(3));
  };
  const demand = {};
  if (from > AT_END) demand.low = valueAt(from, Math.ceil);
  if (to < 1 - AT_END) demand.high = valueAt(to, Math.floor);
  return Object.keys(demand).length ? demand : null;
}

/** The reverse of `demandOf`. */
function partOf(axis, {low, high, options}) {
  if (axis.options) {
    const last = Math.max(1, axis.options.length - 1);
    const same = (option, word) => String(option).toLowerCase() === word.toLowerCase() || Number(word) === option;
    const value = (option) => typeof option === "number" && (low === undefined || option >= low) && (high === undefined || option <= high);
    const places = axis.options.flatMap((option, place) => ((options ? options.some((word) => same(option, word)) : value(option)) ? [place / last] : []));
    return places.length ? [Math.min(...places), Math.max(...places)] : null;
  }
  const ends = [onScale(axis, axis.low), onScale(axis, axis.high)];
  const share = (value, otherwise) => (value === undefined ? otherwise : Math.min(1, Math.max(0, (onScale(axis, value) - ends[0]) / (ends[1] - ends[0] || 1))));
  if (options) return [share(Number(options[0]), 0), share(Number(options[0]), 1)];
  return [share(low, 0), share(high, 1)];
}
