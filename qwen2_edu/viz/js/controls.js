// What holds for all maps: which heads are drawn, how, and what the colours mean.

/** Of marked heads the mean can be drawn; the maps of pinned ones stay beside the next ones. */
function collecting({ state, change }) {
  const among = (list, at) => list.some((one) => nameOf(one) === nameOf(at));
  const toggled = (list, { layer, head, ...more }) => (among(list, { layer, head })
    ? list.filter((one) => nameOf(one) !== nameOf({ layer, head })) : [...list, { layer, head, ...more }]);
  return {
    isMarked: (at) => among(state.marked, at),
    markHead: ({ layer, head }) => change({ marked: toggled(state.marked, { layer, head }) }),
    isPinned: (at) => among(state.pinned, at),
    pinHead: ({ layer, head }) => change({
      pinned: toggled(state.pinned, { layer, head, kept: true }),
      minus: state.minus === nameOf({ layer, head }) ? "" : state.minus, // it may be gone
    }),
  };
}

function makeToolbar({ state, change, zoom, isMarked, markHead, isPinned, pinHead, minusChoice }) {
  const over = select("Map of", [["head", "one head"], ["group", "mean of its key group"], ["layer", "mean of its layer"], ["marked", "mean of marked heads"]], (value) => change({ over: value }));
  const pin = button("Compare", null, () => pinHead(state));
  const mark = button("Mark", null, () => markHead(state));
  const clear = button("Clear marks", null, () => change({ marked: [] }));
  pin.title = "Keep the map of this head beside the next ones; on a head, the key p";
  mark.title = "Count this head among the marked ones, of which the mean can be drawn; on a head, the key m";
  const draw = () => {
    mark.setAttribute("aria-pressed", isMarked(state));
    clear.hidden = !(state.over === "marked" && state.marked.length > 1);
    pin.setAttribute("aria-pressed", isPinned(state));
    minusChoice.draw();
    over.value = state.over;
  };
  const tools = h("div", { class: "qx-tools" }, h("label", {}, "Map of ", over), mark, clear, pin, minusChoice.element,
    h("span", { role: "group", "aria-label": "Zoom" },
      button("−", "Zoom out", () => zoom(state.zoom / 2)), button("+", "Zoom in", () => zoom(state.zoom * 2))));
  return { draw, element: h("div", {}, tools, minusChoice.told) };
}

function makeLegend(shared) {
  const { data, state, ready, change, aboutLayer, scale } = shared;
  const keys = h("div", { class: "qx-legend" });
  const colours = select("Colours", [["viridis", "viridis"], ["cividis", "cividis"]], (value) => change({ colours: value }));

  const mask = h("input", { type: "checkbox", checked: true, onchange: () => change({ mask: mask.checked }) });

  function draw() {
    const ticks = [0, 0.05, 0.25, 0.5, 1];
    const ink = getComputedStyle(shared.root).color;
    const slides = [state, ...state.pinned].some((shown) => aboutLayer(shown.layer).sliding);
    const reasons = state.mask ? data.reasons.filter((reason) => reason !== 2 || slides) : [];
    const weights = h("div", { class: "qx-scale", role: "img", "aria-label": "Colours of the weights from 0 to 1" },
      h("div", { style: `background: ${ready.palette.gradient}` }),
      ...ticks.map((w) => h("span", { style: `left: ${100 * Math.sqrt(w)}%` }, `${w}`)));
    colours.value = state.colours;
    mask.checked = state.mask;
    keys.replaceChildren(...(ready.minus ? scale() : []), ...(ready.minus && !state.pinned.length ? [] : [weights]),
      ...reasons.map((reason) => h("span", {},
        h("i", { style: `background-image: url(${hatch(reason, ink).toDataURL()})` }), REASONS[reason])));
  }
  return { draw, element: h("div", { class: "qx-foot" }, keys, h("label", {}, "Colours ", colours), h("label", {}, mask, " Mask")) };
}
