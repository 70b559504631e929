// The colours: those of the system, or those that were chosen here. It runs before the page is drawn.

(() => {
  const asks = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // storage is off
    }
  };
  const apply = () => {
    document.documentElement.dataset.theme = chosen() ?? (asks.matches ? "dark" : "light");
  };
  asks.addEventListener("change", apply);
  apply();
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    if (!button) return;
    const tell = () => {
      const dark = document.documentElement.dataset.theme === "dark";
      button.textContent = dark ? "Light" : "Dark";
      button.setAttribute("aria-label", dark ? "Use light colours" : "Use dark colours");
    };
    asks.addEventListener("change", tell);
    button.addEventListener("click", () => {
      const other = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      try {
        // What the system asks for needs no note, so that the page follows the system again.
        if (other === (asks.matches ? "dark" : "light")) localStorage.removeItem("theme");
        else localStorage.setItem("theme", other);
      } catch {
        // storage is off: the choice lasts until the page is closed
      }
      document.documentElement.dataset.theme = other;
      tell();
    });
    tell();
  });
})();
