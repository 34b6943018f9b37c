(() => {
  "use strict";
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const places = [...document.querySelectorAll("[data-figure]")];

  // Colours are CSS variables and words are [[English|Japanese]], so that one figure serves every theme and language.
  const filled = (value, style) => {
    if (typeof value === "string") {
      return value
        .replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim())
        .replace(/\[\[([^|\]]*)\|([^\]]*)\]\]/g, (_, en, ja) => (root.lang === "ja" ? ja : en));
    }
    if (Array.isArray(value)) return value.map((item) => filled(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, filled(item, style)]));
    }
    return value;
  };

  const drawOne = (place) => {
    const { data, layout } = filled(figures[place.dataset.figure], getComputedStyle(root));
    layout.font.family = getComputedStyle(document.body).fontFamily;
    Plotly.react(place, data, layout, { displayModeBar: false, responsive: true, scrollZoom: false });
  };
  const draw = () => places.forEach(drawOne);
  // One figure after the other, so that the page can be read and scrolled before the last one is there.
  const drawInTurn = (next = 0) => {
    if (next >= places.length) return;
    drawOne(places[next]);
    setTimeout(drawInTurn, 0, next + 1);
  };

  const buttons = [...document.querySelectorAll("[data-language]")];
  const speak = (language) => {
    root.lang = language;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.language === language));
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      speak(button.dataset.language);
      draw();
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  speak((navigator.language || "").toLowerCase().startsWith("ja") ? "ja" : "en");
  setTimeout(drawInTurn, 0);
})();
