// The attention explorer: it draws what Python has measured. The files of this folder, one after
// the other, are one module (explorer.py joins them), and it serves two places. In a notebook a
// layer's weights come from the kernel when they are first looked at; in a page of to_html() all of
// them are inside.

const REASONS = ["", "in the future", "outside the window", "padding"]; // as in record.py
const HELP = "Click a head: its map; a token: what it looks at; a bar or cell: that look; Shift-click a token, or k: its other end. "
  + "Colour: √weight.";

const AHEAD = 4e6; // bytes of a layer: larger ones are not fetched ahead

export default { render };

/** In a notebook: draw, and draw anew when Python has read another text. */
function render({ model, el }) {
  let close = explore(el, fromKernel(model));
  const anew = () => {
    const focused = el.contains(document.activeElement);
    close();
    close = explore(el, fromKernel(model));
    if (focused) el.querySelector(".qx-edit").focus();
  };
  model.on("change:data", anew);
  return () => (model.off("change:data", anew), close());
}

/** Draw into an element what a source tells; answers how to close it. */
function explore(el, source) {
  const { data } = source;
  const T = data.tokens.length;
  const many = data.heads * data.layers.length > 100; // too many to look through
  const stepOf = (query) => data.steps.findIndex((step) => step.position === query) + 1 || (query === T - 1 ? data.steps.length : 0);
  const state = {
    layer: source.get("layer"), head: source.get("head"), query: source.get("query"),
    key: source.get("key") ?? (["layer", "head", "query"].every((name) => source.get(name) === data.opens[name]) ? data.opens.key : null),
    direction: "query", // the chosen token is the query, or the key
    over: "head", view: "raw", sort: many ? "cell" : "", highFirst: true, keep: null, colours: "viridis", mask: true, zoom: 1,
    pinned: [], // heads whose maps stay beside the next ones, {layer, head, kept: true}
    minus: "", // what is taken away from the chosen map: one of these, "layer.head", or "beside"
    marked: [], // heads, {layer, head}, of which the mean can be drawn
    off: [], to: "zero", // heads switched off, "layer.head", and what they say instead
    cuts: [], cutIn: "head", patches: [], other: null, // see causes.js; patches: [layer, part, place] of the other text
    token: null, // {query, id}: whose logit is asked about after a query; null = of the one that comes
    tab: "", // which of the tabs is seen; "" = the first
    get step() { return stepOf(this.query); }, // 1 … steps, 0 = the query is part of the prompt
  };
  Object.assign(state, recalled({ source, data, T }));
  const layers = new Map(); // index -> bytes of its maps, then of its mask
  const ready = {}; // thumbnails and colour tables
  const notice = h("p", { class: "qx-notice", role: "status" });
  const live = !source.whole && data.lens.length > 0; // there is a model to ask what a change does
  // What the parts share: each takes from it what it needs.
  const shared = { source, data, T, many, state, layers, ready, notice, live, change, zoom, say, gutter: gutterOf(data.tokens) };
  Object.assign(shared, reading(shared), switching(shared), collecting(shared));
  Object.assign(shared, cutting(shared), differing(shared), sharing(shared)); // they need what reading tells
  const overview = makeOverview(shared);
  const tops = h("div", { class: "qx-tops" }), drawings = h("div", { class: "qx-maps" }), maps = [];
  /** One map more: of the chosen head, then of each pinned one. */
  function addMap(which) {
    maps.push(makeMap(shared, which));
    tops.append(maps.at(-1).top), drawings.append(maps.at(-1).element);
  }
  addMap(() => state);
  const [toolbar, legend, text, steps, lens, shares, cause] = [makeToolbar, makeLegend, makeText, makeSteps, makeLens, makeShares, makeCause].map((make) => make(shared));
  const readout = h("output", { class: "qx-readout" }), rounded = h("p", { class: "qx-note" }, data.rounded);
  const edit = source.whole ? null : editing(shared);
  const sides = tabs([["steps", "Generation", steps.element], ["lens", "Logit lens", lens.element], ["shares", "Attribution", shares.element],
    ["causes", "Causes", cause.element]].filter(([, , element]) => element), state, change);
  const root = shared.root = h("section", { class: "qx", "aria-label": `Attention explorer: ${clip(data.text, 40)}`,
    // JupyterLab takes keys such as the arrows and "a" for its own, but where the focused element says no.
    onfocusin: ({ target }) => target.setAttribute("data-lm-suppress-shortcuts", true) },
    h("header", {}, h("h2", {}, "Attention explorer"), shared.minusChoice.where, h("p", {}, data.title), ...(source.whole ? [] : [edit.button, saving(shared)])),
    ...(edit ? [edit.form] : []), notice,
    h("p", { class: "qx-note qx-help" }, h("b", { "aria-hidden": true }, "?"), HELP),
    h("div", { class: "qx-row qx-first" }, h("div", {}, h("div", { class: "qx-tools" }, text.asks, steps.scrubber), text.list, steps.told), tops),
    h("div", { class: "qx-row qx-second" }, overview.element,
      h("div", { class: "qx-large" }, toolbar.element, drawings, readout, shares.told, cause.told, legend.element, rounded), sides.element));
  el.replaceChildren(root);

  /** Tell about a cell and its row; null = the chosen one. */
  function say(at) {
    at ??= { layer: state.layer, head: state.head, query: state.query, key: state.key };
    if (!shared.loaded(at)) return;
    readout.textContent = shared.sentence(at);
    for (const map of maps) map.list(at);
  }

  function zoom(factor) {
    change({ zoom: Math.max(1, Math.min(factor, 2 ** Math.ceil(Math.log2(Math.max(1, T / 8))))) });
  }

  function change(to) {
    Object.assign(state, to);
    sides.draw();
    source.set(Object.fromEntries(["layer", "head", "query", "key"].filter((trait) => trait in to).map((trait) => [trait, state[trait]])));
    draw().then(() => source.remember(address(state)));
  }

  const excuse = "Waiting for the kernel: it is busy, or it has stopped. Then run the cell again.";
  let turn = 0;
  async function draw() {
    const mine = ++turn;
    const needed = [state.layer, ...state.pinned.map(({ layer }) => layer), ...(state.over === "marked" ? state.marked.map(({ layer }) => layer) : [])];
    const waiting = setTimeout(() => (notice.textContent = excuse), 2000);
    ready.thumbnails ??= await source.load("thumbnails");
    ready.tables ??= await source.load("colours");
    ready.norms ??= new Float32Array((await source.load("norms")).slice().buffer);
    for (const index of needed) if (!layers.has(index)) layers.set(index, await source.load(`layer ${index}`));
    const minus = await shared.loadMinus();
    if (mine !== turn) return clearTimeout(waiting); // a later change draws
    ready.minus = minus;
    state.key ??= shared.strongest(state); // a query was chosen: begin at what it looks at
    if (ready.name !== state.colours) {
      Object.assign(ready, { name: state.colours, palette: palette(ready.tables, state.colours) });
    }
    root.classList.toggle("qx-comparing", state.pinned.length > 0);
    for (let i = maps.length - 1; i < state.pinned.length; i++) addMap(() => state.pinned[i]);
    for (const part of [...maps, text, steps, lens, cause, toolbar, legend]) part.draw();
    say(null);
    const looks = state.sort === "cell" ? await shared.looking() : null; // of all heads: the map does not wait
    const asked = shared.asksShares() ? await shared.loadShares() : null;
    clearTimeout(waiting);
    if (mine !== turn) return;
    Object.assign(ready, { looks, shares: asked });
    shares.draw();
    if (notice.textContent === excuse) notice.textContent = "";
    overview.draw();
    for (const index of overview.beside()) { // likely to be looked at soon
      if (T * T * data.heads < AHEAD) source.load(`layer ${index}`);
    }
  }

  const repaint = () => ready.palette && ([...maps, lens, overview].forEach((part) => part.paint()), legend.draw());
  const resized = new ResizeObserver(repaint);
  resized.observe(root);
  const themed = new MutationObserver(repaint); // JupyterLab names its theme on the body
  themed.observe(document.body, { attributes: true });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", repaint);
  const elsewhere = () => source.whole && change(recalled(shared)); // the address was changed by hand, or a link followed
  window.addEventListener("hashchange", elsewhere);
  for (const trait of ["layer", "head", "query", "key"]) { // chosen in Python, or in the explorer beside this one
    source.listen(trait, () => source.get("data") === data && source.get(trait) !== state[trait]
      && change({ ...("key" in shared.fresh() ? { key: source.get("key") } : {}), [trait]: source.get(trait) }));
  }
  draw();
  return () => {
    for (const observer of [resized, themed]) observer.disconnect();
    overview.close();
    dark.removeEventListener("change", repaint);
    window.removeEventListener("hashchange", elsewhere);
    source.close();
  };
}
