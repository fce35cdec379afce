// What holds for all maps: which heads are drawn, how, and what the colours mean.

/** Marked heads are those of which the mean can be drawn. */
function marking({ state, change }) {
  const isMarked = (at) => state.marked.some(({ layer, head }) => layer === at.layer && head === at.head);
  function markHead({ layer, head }) {
    const others = state.marked.filter((one) => one.layer !== layer || one.head !== head);
    change({ marked: isMarked({ layer, head }) ? others : [...others, { layer, head }] });
  }
  return { isMarked, markHead };
}

function makeToolbar({ state, change, zoom, isMarked, markHead, minusChoice }) {
  const mask = h("input", { type: "checkbox", checked: true, onchange: () => change({ mask: mask.checked }) });
  const colours = select("Colours", [["viridis", "viridis"], ["cividis", "cividis"]], (value) => change({ colours: value }));
  const over = select("Map of", [["head", "one head"], ["group", "its key group"], ["layer", "its layer"], ["marked", "marked heads"]], (value) => change({ over: value }));
  const pin = button("Compare", null, () => change({ minus: state.minus === "kept" ? "" : state.minus, pinned: state.pinned ? null : { layer: state.layer, head: state.head, kept: true } }));
  const mark = button("Mark", null, () => markHead(state));
  const clear = button("Clear marks", null, () => change({ marked: [] }));
  mark.title = "Count this head among the marked ones, of which the mean can be drawn; on a head, the key m";
  const draw = () => {
    mark.setAttribute("aria-pressed", isMarked(state));
    clear.hidden = !(state.over === "marked" && state.marked.length > 1);
    pin.setAttribute("aria-pressed", Boolean(state.pinned));
    minusChoice.draw();
    mask.checked = state.mask;
    over.value = state.over;
    colours.value = state.colours;
    pin.title = state.pinned ? "Show one head again" : "Keep this head beside the next ones";
  };
  const tools = h("div", { class: "qx-tools" }, h("label", {}, "Map of ", over), mark, clear, pin, minusChoice.element,
    h("span", { role: "group", "aria-label": "Zoom" },
      button("−", "Zoom out", () => zoom(state.zoom / 2)), button("+", "Zoom in", () => zoom(state.zoom * 2))),
    h("label", {}, mask, " Mask"), h("label", {}, "Colours ", colours));
  return { draw, element: h("div", {}, tools, minusChoice.told) };
}

function makeLegend(shared) {
  const { data, state, ready, aboutLayer, scale } = shared;
  const element = h("div", { class: "qx-legend" });

  function draw() {
    const ticks = [0, 0.05, 0.25, 0.5, 1];
    const ink = getComputedStyle(shared.root).color;
    const slides = [state, state.pinned].some((shown) => shown && aboutLayer(shown.layer).sliding);
    const reasons = state.mask ? data.reasons.filter((reason) => reason !== 2 || slides) : [];
    const weights = h("div", { class: "qx-scale", role: "img", "aria-label": "Colours of the weights from 0 to 1" },
      h("div", { style: `background: ${ready.palette.gradient}` }),
      ...ticks.map((w) => h("span", { style: `left: ${100 * Math.sqrt(w)}%` }, `${w}`)));
    element.replaceChildren(...(ready.minus ? scale() : []), ...(ready.minus && !state.pinned ? [] : [weights]),
      ...reasons.map((reason) => h("span", {},
        h("i", { style: `background-image: url(${hatch(reason, ink).toDataURL()})` }), REASONS[reason])));
  }
  return { draw, element };
}
