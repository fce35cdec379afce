// The attention explorer: it draws what Python has measured. One file serves two places. In a
// notebook a layer's weights come from the kernel when they are first looked at; in a page of
// to_html() all of them are inside.

const REASONS = ["", "in the future", "outside the window", "padding"]; // as in record.py
const GUTTER = 88; // pixels for the labels left of a map and above it
const MOST_RANKED = 100; // heads of a ranking: more are a picture, and no list
const LABEL = 11; // pixels a label needs
const HELP = "A bracket joins the query heads that share one key/value head. Bright means much weight; colours follow √weight, "
  + "so that small weights show. A click on a head draws it large; on a token, it asks what that token looks at; on a cell, "
  + "it chooses its query and its key.";

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

// -- where the numbers come from ------------------------------------------------------------------

/** Ask the kernel: load(name) answers bytes, or for "lens 5" the rows of a table. */
function fromKernel(model) {
  const asked = new Map(); // name -> the promise of an answer
  const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  const take = (answer, buffers) => {
    const request = asked.get(answer.name);
    if (answer.error) request?.reject?.(new Error(answer.error));
    else request?.resolve?.(answer.rows ?? bytes(buffers[0]));
  };
  const ask = (name, more) => {
    const request = {};
    request.promise = new Promise((resolve, reject) => Object.assign(request, { resolve, reject }));
    asked.set(name, request);
    model.send({ name, ...more });
    return request.promise;
  };
  const load = (name) => {
    if (["thumbnails", "norms", "colours"].includes(name)) return Promise.resolve(bytes(model.get(name)));
    return asked.get(name)?.promise ?? ask(name);
  };
  const { layer, query, key, rows } = model.get("data").opens; // so that the first paint needs no kernel
  asked.set(`layer ${layer}`, { promise: Promise.resolve(bytes(model.get("first"))) });
  asked.set(`cell ${query} ${key} raw`, { promise: Promise.resolve(rows) });
  const heard = []; // to be unheard when this view closes; another view of the model may go on
  const listen = (event, act) => (model.on(event, act), heard.push([event, act]));
  listen("msg:custom", take);
  return {
    load,
    ask,
    recall: () => "",
    remember: () => {},
    data: model.get("data"),
    get: (name) => model.get(name),
    set: (name, value) => (model.set(name, value), model.save_changes()),
    listen: (name, act) => listen(`change:${name}`, act),
    close: () => heard.forEach(([event, act]) => model.off(event, act)),
  };
}

/** The same from a page: its blobs are deflated and in base64. */
function fromPage(page) {
  const loaded = new Map();
  const inflate = async (text) => {
    const packed = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const blob = (name) => {
    if (!loaded.has(name)) loaded.set(name, inflate(page.blobs[name]));
    return loaded.get(name);
  };
  const load = async (name) => {
    if (!name.startsWith("lens ")) return blob(name);
    const rows = loaded.get("rows") ?? JSON.parse(new TextDecoder().decode(await blob("lens")));
    loaded.set("rows", rows);
    return rows[Number(name.slice(5))];
  };
  const nothing = () => {};
  const recall = () => location.hash.slice(1) || page.view;
  const remember = (view) => {
    try {
      history.replaceState(null, "", `#${view}`);
    } catch { /* a page within a page may have no address of its own */ }
  };
  return { load, recall, remember, whole: true, data: page.data, get: (name) => page[name], set: nothing, listen: nothing, close: nothing };
}

// -- small tools ----------------------------------------------------------------------------------

/** An element: h("p", { class: "note", onclick: act }, "text", child). */
function h(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

const button = (text, label, act) => h("button", { type: "button", "aria-label": label, onclick: act }, text);
const select = (label, options, act) => {
  const made = h("select", { "aria-label": label, onchange: () => act(made.value) },
    ...options.map(([value, text]) => h("option", { value }, text)));
  return made;
};
const slider = (label, most, act) => {
  const made = h("input", { type: "range", min: 0, max: most, "aria-label": label, oninput: () => act(Number(made.value)) });
  return made;
};

const unique = () => `qx-${Math.random().toString(36).slice(2)}`; // pages hold several explorers

const weightOf = (byte) => (byte / 255) ** 2;
const digits = (w) => (w === 0 ? "0" : w < 0.0005 ? "<0.001" : w.toFixed(w < 0.1 ? 3 : 2));
const chance = (p) => digits(Math.max(p, 1e-9)); // Python rounds, and no probability is 0
const clip = (text, length) => {
  const chars = Array.from(text);
  return chars.length > length ? chars.slice(0, length - 1).join("") + "…" : text;
};

/** Arrow keys walk over the options of a listbox, of which one at a time can be tabbed to. */
function walkable(list, choose, backwards = false) {
  list.addEventListener("keydown", (event) => {
    const options = [...list.querySelectorAll("[role=option]")];
    const here = event.target.closest("[role=option]");
    const at = options.indexOf(here);
    let next = null;
    if (event.key === "Home") next = options[0];
    else if (event.key === "End") next = options.at(-1);
    else if (event.key === "Enter" || event.key === " ") next = here;
    else if (event.key === "ArrowLeft") next = options[at + (backwards ? 1 : -1)];
    else if (event.key === "ArrowRight") next = options[at + (backwards ? -1 : 1)];
    else if (event.key === "ArrowUp" || event.key === "ArrowDown") next = neighbour(options, here, event.key);
    else return;
    event.preventDefault();
    event.stopPropagation(); // a notebook would move to another cell
    if (next) choose(next), next.focus();
  });
  list.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) choose(option), option.focus();
  });
}

/** The option nearest to the one above or below. */
function neighbour(options, from, key) {
  const middle = (box) => [box.left + box.width / 2, box.top + box.height / 2];
  const [x, y] = middle(from.getBoundingClientRect());
  const sign = key === "ArrowUp" ? -1 : 1;
  const distances = options.map((option) => {
    const [left, top] = middle(option.getBoundingClientRect());
    const down = (top - y) * sign;
    return down > 4 ? down * 20 + Math.abs(left - x) : Infinity;
  });
  const best = Math.min(...distances);
  return Number.isFinite(best) ? options[distances.indexOf(best)] : null;
}

function mark(list, chosen) {
  const options = [...list.querySelectorAll("[role=option]")];
  const one = options.find(chosen) ?? null;
  for (const option of options) {
    option.setAttribute("aria-selected", option === one);
    option.tabIndex = option === (one ?? options[0]) ? 0 : -1;
  }
  return one;
}

/** A line of a bar chart. */
function bar(label, part, value, drawn = false) {
  const line = h("i", { style: `--part: ${part}` });
  return h("li", { class: drawn ? "qx-drawn" : "" }, h("span", {}, label), line, h("b", {}, value));
}

/** Parts of which one is seen at a time: arrow keys walk over their tabs. */
function tabs(parts) {
  const buttons = parts.map(([label], i) => h("button", { type: "button", role: "tab", id: unique(), onclick: () => show(i) }, label));
  const panels = parts.map(([, { element }], i) => (element.setAttribute("role", "tabpanel"),
    element.setAttribute("aria-labelledby", buttons[i].id), element));
  const show = (one) => {
    buttons.forEach((button, i) => {
      button.setAttribute("aria-selected", i === one);
      button.tabIndex = i === one ? 0 : -1;
      panels[i].hidden = i !== one;
    });
    if (panels[one].isConnected) parts[one][1].draw(); // it may have waited to be seen
  };
  const press = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const to = (buttons.indexOf(event.target) + step + buttons.length) % buttons.length;
    show(to), buttons[to].focus();
  };
  show(0);
  return h("div", { class: "qx-side" }, h("div", { role: "tablist", class: "qx-tabs", onkeydown: press }, ...buttons), ...panels);
}

/** 256 colours as the 32-bit numbers that an ImageData holds. */
function palette(bytes, name) {
  const start = name === "viridis" ? 0 : 768;
  const colour = (i) => [0, 1, 2].map((channel) => bytes[start + 3 * i + channel]);
  const words = Uint32Array.from({ length: 256 }, (_, i) => {
    const [red, green, blue] = colour(i);
    return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });
  const stops = Array.from({ length: 17 }, (_, i) => `rgb(${colour(Math.min(255, i * 16))})`);
  return { words, gradient: `linear-gradient(90deg, ${stops})` };
}

/** A square of pixels: colours[i] each, 0 = transparent. */
function pixels(side, colours) {
  const canvas = h("canvas", { width: side, height: side });
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(colours.buffer), side, side), 0, 0);
  return canvas;
}

/** How a hidden cell is filled, told apart by shape and not by colour alone. */
function hatch(reason, ink) {
  const canvas = h("canvas", { width: 8, height: 8 });
  const pen = canvas.getContext("2d");
  pen.strokeStyle = pen.fillStyle = ink;
  pen.globalAlpha = 0.06;
  pen.fillRect(0, 0, 8, 8);
  pen.globalAlpha = 0.4;
  pen.beginPath();
  if (reason === 2) for (const x of [-8, 0, 8]) pen.moveTo(x, 8), pen.lineTo(x + 8, 0);
  if (reason === 3) pen.arc(2, 2, 1, 0, 7), pen.moveTo(7, 6), pen.arc(6, 6, 1, 0, 7), pen.fill();
  pen.stroke();
  return canvas;
}

// -- the explorer ---------------------------------------------------------------------------------

function explore(el, source) {
  const { data } = source;
  const T = data.tokens.length;
  const many = data.heads * data.layers.length > 100; // too many to look through
  const state = {
    layer: source.get("layer"), head: source.get("head"), query: source.get("query"),
    key: ["layer", "head", "query"].every((name) => source.get(name) === data.opens[name]) ? data.opens.key : null,
    direction: "query", // the chosen token is the query, or the key
    over: "head", view: "raw", pinned: null, sort: many ? "cell" : "", highFirst: true, keep: null, colours: "viridis", mask: true, zoom: 1,
    off: [], to: "zero", // heads switched off, "layer.head", and what they say instead
    step: 0, // 1 … steps, 0 = nothing was generated
  };
  Object.assign(state, recalled());
  state.step = data.steps.findIndex((step) => step.position === state.query) + 1 || data.steps.length;
  const layers = new Map(); // index -> bytes of its maps, then of its mask
  const ready = {}; // thumbnails and colour tables
  const name = (i) => `${i} “${data.tokens[i].text}”`;
  const chosenToken = () => (state.direction === "query" ? state.query : state.key);
  const aboutLayer = (index) => data.layers.find((layer) => layer.index === index);
  const keyHead = (head) => Math.floor(head / (data.heads / data.groups));

  /** What of the view is told in a page's address; what is not known there is passed over. */
  function recalled() {
    const upTo = (count) => Array.from({ length: count }, (_, i) => i);
    const known = {
      layer: data.layers.map((layer) => layer.index), head: upTo(data.heads), query: upTo(T), key: upTo(T),
      direction: ["query", "key"], over: ["head", "group", "layer"], view: data.views.map((view) => view.name), highFirst: [true, false],
      sort: ["", "cell", ...data.behaviours.map((b) => b.name)], colours: ["viridis", "cividis"], mask: [true, false],
      zoom: upTo(12).map((i) => 2 ** i),
    };
    const told = new URLSearchParams(source.recall()), to = {};
    for (const [name, values] of Object.entries(known)) {
      const value = values.find((one) => String(one) === told.get(name));
      if (value !== undefined) to[name] = value;
    }
    const [layer, head] = (told.get("pinned") ?? "").split(".").map(Number);
    if (known.layer.includes(layer) && known.head.includes(head)) to.pinned = { layer, head };
    if (["layer", "head", "query"].some((one) => one in to) && !("key" in to)) to.key = null;
    return to;
  }

  function address() {
    const { pinned } = state, told = new URLSearchParams();
    for (const one of ["layer", "head", "query", "key", "direction", "over", "view", "sort", "highFirst", "colours", "mask", "zoom"]) told.set(one, state[one]);
    if (pinned) told.set("pinned", `${pinned.layer}.${pinned.head}`);
    return told.toString();
  }

  /** Weight of a cell: how much does query q look at key k, in one head? */
  const weight = (at, q, k) => factor(at, k) * weightOf(layers.get(at.layer)[(at.head * T + q) * T + k]) / total(at, q);

  /** The same in what is drawn, which may be the mean of several heads; and if hidden, why. */
  const cell = (at, q, k) => {
    const heads = members(at);
    const sum = heads.reduce((before, head) => before + weight({ layer: at.layer, head }, q, k), 0);
    return [sum / heads.length, layers.get(at.layer)[(data.heads * T + q) * T + k]];
  };
  const members = ({ head }) => {
    if (state.over === "head") return [head];
    const size = state.over === "group" ? data.heads / data.groups : data.heads;
    return Array.from({ length: size }, (_, i) => Math.floor(head / size) * size + i);
  };

  /** What the view multiplies the weights on a key with, before each row is shared out anew. */
  const factor = (at, k) => {
    if (state.view === "raw") return 1;
    if (state.view === "rest") return k === data.first ? 0 : 1;
    return ready.norms[(data.layers.indexOf(aboutLayer(at.layer)) * data.heads + at.head) * T + k];
  };
  const totals = new Map(); // of each row of the heads looked at
  const total = (at, q) => {
    if (state.view === "raw") return 1;
    const name = [state.view, at.layer, at.head].join();
    if (!totals.has(name)) totals.set(name, new Float64Array(T));
    const sums = totals.get(name), start = (at.head * T + q) * T;
    if (!sums[q]) {
      const bytes = layers.get(at.layer);
      for (let k = 0; k < T; k++) sums[q] += factor(at, k) * weightOf(bytes[start + k]);
    }
    return sums[q] || 1;
  };

  const scoresOf = (measure) => (state.view === "raw" || !measure.views ? measure.scores : measure.views[state.view]);

  /** How much does each head look from the chosen query to the chosen key? (layers, heads) */
  async function looking() {
    const { query, key } = state;
    if (!source.whole) return source.load(`cell ${query} ${key} ${state.view}`);
    for (const { index } of data.layers) if (!layers.has(index)) layers.set(index, await source.load(`layer ${index}`));
    return data.layers.map(({ index: layer }) =>
      Array.from({ length: data.heads }, (_, head) => weight({ layer, head }, query, key)));
  }

  /** The measure that heads are sorted by, or nothing. */
  const measure = () => state.sort !== "cell" ? data.behaviours.find((b) => b.name === state.sort)
    : { label: "this look", help: `weight from query ${name(state.query)} to key ${name(state.key)}`, scores: ready.looks };

  /** Another head or query was chosen: the key begins anew, but where it is what was chosen. */
  const fresh = () => (state.direction === "query" && state.sort !== "cell" ? { key: null } : {});

  /** The key that the chosen query looks at most. */
  const strongest = (at) => {
    const row = Array.from({ length: T }, (_, k) => cell(at, at.query, k)[0]);
    return row.indexOf(Math.max(...row));
  };

  const overview = makeOverview();
  const maps = [makeMap(() => state), makeMap(() => state.pinned)];
  const text = makeText();
  const steps = makeSteps();
  const lens = makeLens();
  const cause = makeCause();
  const readout = h("output", { class: "qx-readout" });
  const legend = h("div", { class: "qx-legend" }), rounded = h("p", { class: "qx-note" }, data.rounded);
  const notice = h("p", { class: "qx-notice", role: "status" });
  const edit = source.whole ? null : editing();
  const root = h("section", { class: "qx", "aria-label": "Attention explorer",
    // JupyterLab takes keys such as the arrows and "a" for its own, but where the focused element says no.
    onfocusin: ({ target }) => target.setAttribute("data-lm-suppress-shortcuts", true) },
    h("header", {}, h("h2", {}, "Attention explorer"), h("p", {}, data.title), ...(source.whole ? [] : [edit.button, saving()])),
    ...(edit ? [edit.form] : []), notice,
    h("p", { class: "qx-note qx-help" }, h("b", { "aria-hidden": true }, "?"), HELP),
    h("div", { class: "qx-row qx-first" }, text.element, h("div", { class: "qx-tops" }, maps[0].top, maps[1].top)),
    h("div", { class: "qx-row qx-second" }, overview.element,
      h("div", { class: "qx-large" }, toolbar(), h("div", { class: "qx-maps" }, maps[0].element, maps[1].element), readout, legend, rounded),
      tabs([["Generation", steps], ["Logit lens", lens], ["Heads off", cause]].filter(([, { element }]) => element))));
  el.replaceChildren(root);

  /** The text in a box, and the model reads it again: the new data then draws all anew. */
  function editing() {
    const box = h("textarea", { "aria-label": "Text to read", rows: 4, spellcheck: "false", dir: "auto" });
    const show = (open) => {
      form.hidden = !open;
      made.setAttribute("aria-expanded", open);
      if (open) box.value = data.text;
      (open ? box : made).focus();
    };
    const made = button("Edit the text", null, () => show(form.hidden));
    made.classList.add("qx-edit");
    made.setAttribute("aria-expanded", false);
    const run = async (event) => {
      event.preventDefault();
      notice.textContent = "The model reads …";
      try {
        await source.ask("read", { text: box.value });
      } catch (error) {
        notice.textContent = error.message;
      }
    };
    const press = (event) => {
      if (event.key === "Escape") show(false);
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(event);
      event.stopPropagation();
    };
    const form = h("form", { class: "qx-form", hidden: true, onsubmit: run, onkeydown: press }, box,
      h("div", { class: "qx-tools" }, h("button", {}, "Read it"), button("Cancel", null, () => show(false)),
        h("span", { class: "qx-note" }, "Ctrl+Enter reads, Escape cancels.")));
    return { button: made, form };
  }

  /** A button that saves all as a page, which opens as this is seen now. */
  function saving() {
    const made = button("Save as a page", null, async () => {
      if (made.getAttribute("aria-disabled") === "true") return;
      made.setAttribute("aria-disabled", true);
      notice.textContent = "Writing the page: its logit lens may take some seconds.";
      try {
        const page = new Blob([await source.ask("page", { view: address() })], { type: "text/html" });
        const link = h("a", { href: URL.createObjectURL(page), download: "attention.html" });
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 60000);
        notice.textContent = `attention.html is saved, ${(page.size / 1e6).toFixed(1)} MB: it opens without a notebook.`;
      } catch (error) {
        notice.textContent = error.message;
      }
      made.removeAttribute("aria-disabled");
    });
    made.title = "One file, without kernel or network";
    return made;
  }

  // -- the heads ----------------------------------------------------------------------------------

  function makeOverview() {
    const list = h("div", { role: "listbox", "aria-label": "Heads" });
    const columns = h("div", { class: "qx-layer", "aria-hidden": true }); // each head says its key head
    const sort = select("Heads by", [["", "layer"], ["cell", "this query → this key"], ...data.behaviours.map((b) => [b.name, b.label])],
      (value) => change({ sort: value, keep: null }));
    sort.value = state.sort;
    const views = select("Weights", data.views.map((view) => [view.name, view.label]), (view) => change({ view, keep: null }));
    const order = select("Order", [["high", "high first"], ["low", "low first"]],
      (value) => change({ highFirst: value === "high", keep: null }));
    const keep = slider("Keep heads that score", 1000, (value) => change({ keep: value }));
    const kept = h("output", {});
    const help = h("p", { class: "qx-note" });
    const filter = h("span", { class: "qx-filter" }, order, keep, kept);
    const headOf = ({ dataset }) => ({ layer: Number(dataset.layer), head: Number(dataset.head) });
    walkable(list, (option) => change({ ...headOf(option), ...fresh() }));
    list.addEventListener("keydown", (event) => {
      const option = event.target.closest("[role=option]");
      if (event.key === "o" && option) switchHeads([headOf(option)]), event.stopPropagation();
    });
    let drawn = null, sought = null;

    function thumbnail(layer, head, caption) {
      const side = data.thumbnail, at = data.layers.indexOf(layer);
      const view = data.views.findIndex(({ name }) => name === state.view) * data.layers.length;
      const start = ((view + at) * data.heads + head) * side * side;
      const colours = new Uint32Array(side * side);
      for (let i = 0; i < colours.length; i++) {
        const future = i % side > Math.floor(i / side);
        colours[i] = future ? 0 : ready.palette.words[ready.thumbnails[start + i]];
      }
      const scores = data.behaviours.filter((b) => scoresOf(b)[at][head] !== null)
        .map((b) => `${b.label} ${scoresOf(b)[at][head].toFixed(2)}`).join(", ");
      const label = `Layer ${layer.index} head ${head}, key head ${keyHead(head)}, ${layer.badge}. ${scores}`;
      return h("div", { role: "option", "aria-label": label, title: label, "data-layer": layer.index, "data-head": head },
        pixels(side, colours), ...(caption ? [h("small", {}, caption)] : []));
    }

    function grid() {
      const size = data.heads / data.groups;
      const groups = (fill) => Array.from({ length: data.groups }, (_, g) =>
        h("div", { class: "qx-group", role: "presentation" }, ...fill(g)));
      const brackets = groups((g) => [
        h("div", { class: "qx-bracket", style: `--size: ${size}` }, h("span", {}, size > 1 ? `key head ${g}` : `k${g}`),
          h("div", { class: "qx-numbers" }, ...Array.from({ length: size }, (_, i) => h("small", {}, `${g * size + i}`))))]);
      const alike = data.layers.every(({ badge }) => badge === data.layers[0].badge); // said once, by the heading
      const rows = data.layers.flatMap((layer) => {
        const thumbs = groups((g) => Array.from({ length: size }, (_, i) => thumbnail(layer, g * size + i)));
        const badge = h("span", { class: `qx-badge ${layer.sliding ? "qx-sliding" : ""}`, title: layer.why }, layer.badge);
        const label = `Layer ${layer.index}: ${layer.badge}, as ${layer.why}`;
        const row = h("div", { class: "qx-layer", role: "group", "aria-label": label },
          h("span", { class: "qx-name", role: "presentation" }, h("b", {}, `${layer.index}`), ...(alike ? [] : [badge])), ...thumbs);
        const heading = h("p", { class: "qx-heading", role: "presentation" }, layer.heading ?? "");
        return layer.heading ? [heading, row] : [row];
      });
      columns.replaceChildren(h("span", { class: "qx-name" }, "layer"), ...brackets);
      return rows;
    }

    /** A measure of all heads as a picture of one cell each, where there are too many to look through. */
    const heat = h("canvas", { class: "qx-heat", role: "img", onclick: (event) => change({ ...under(event), ...fresh() }),
      onmousemove: (event) => (heat.title = headName(under(event))) });
    const heatRow = h("div", { class: "qx-heats" }, heat, h("p", { class: "qx-note" }, "Each row a layer, each column a head; the ranking below can be walked by keyboard."));
    const headName = ({ layer, head }) => {
      const score = ready.heat?.[data.layers.indexOf(aboutLayer(layer))][head];
      return `Layer ${layer} head ${head}: ${score == null ? "no score" : score.toFixed(2)}`;
    };
    const LEFT = 22, TOP = 14, WIDE = Math.max(4, Math.floor(390 / data.heads)), HIGH = Math.max(3, Math.min(14, Math.floor(216 / data.layers.length)));
    function under({ offsetX, offsetY }) {
      const within = (place, most) => Math.max(0, Math.min(most - 1, Math.floor(place)));
      const row = within((offsetY - TOP) / HIGH, data.layers.length);
      return { layer: data.layers[row].index, head: within((offsetX - LEFT) / WIDE, data.heads) };
    }

    function drawHeat(scores, label) {
      ready.heat = scores;
      const ratio = window.devicePixelRatio || 1, rows = data.layers.length;
      const [width, height] = [LEFT + WIDE * data.heads + 2, TOP + HIGH * rows + 2];
      Object.assign(heat, { width: width * ratio, height: height * ratio });
      Object.assign(heat.style, { width: `${width}px`, height: `${height}px` });
      const pen = heat.getContext("2d"), { color: ink } = getComputedStyle(root);
      pen.scale(ratio, ratio);
      const all = scores.flat().filter((score) => score !== null), low = Math.min(...all, 0), high = Math.max(...all, low + 1e-9);
      scores.forEach((row, i) => row.forEach((score, head) => {
        if (score === null) return;
        const word = ready.palette.words[Math.round(255 * Math.sqrt((score - low) / (high - low)))];
        pen.fillStyle = `rgb(${word & 255} ${(word >> 8) & 255} ${(word >> 16) & 255})`;
        pen.fillRect(LEFT + head * WIDE, TOP + i * HIGH, WIDE - 1, HIGH - 1);
      }));
      pen.fillStyle = ink;
      pen.font = "10px system-ui, sans-serif";
      pen.textBaseline = "middle";
      for (let i = 0, every = Math.ceil(10 / HIGH); i < rows; i += every) pen.fillText(`${data.layers[i].index}`, 4, TOP + (i + 0.5) * HIGH);
      for (let i = 0, every = Math.ceil(14 / WIDE); i < data.heads; i += every) pen.fillText(`${i}`, LEFT + i * WIDE + 1, 7);
      for (const [at, dash] of [[state, []], [state.pinned, [3, 2]]]) {
        if (!at) continue;
        pen.setLineDash(dash);
        pen.lineWidth = 2;
        pen.strokeStyle = ink;
        pen.strokeRect(LEFT + at.head * WIDE - 1, TOP + data.layers.indexOf(aboutLayer(at.layer)) * HIGH - 1, WIDE + 1, HIGH + 1);
      }
      pen.setLineDash([]);
      for (const [colour, line] of [[getComputedStyle(root).backgroundColor, 4], [ink, 2]]) { // off: crossed out
        Object.assign(pen, { strokeStyle: colour, lineWidth: line });
        pen.beginPath();
        for (const one of state.off) {
          const [layer, head] = one.split(".").map(Number), row = data.layers.indexOf(aboutLayer(layer));
          const x = LEFT + (head + 0.5) * WIDE - 0.5, y = TOP + (row + 0.5) * HIGH - 0.5;
          for (const turn of [-3, 3]) pen.moveTo(x - 3, y - turn), pen.lineTo(x + 3, y + turn);
        }
        pen.stroke();
      }
      heat.setAttribute("aria-label", `${label} of ${data.heads} heads in ${rows} layers, from ${low.toFixed(2)} to ${high.toFixed(2)}`);
    }

    function ranking(behaviour) {
      const sign = state.highFirst ? -1 : 1;
      const all = data.layers
        .flatMap((layer, at) => scoresOf(behaviour)[at].map((score, head) => ({ layer, head, score })))
        .filter(({ score }) => score !== null).sort((a, b) => sign * (a.score - b.score));
      if (!all.length) {
        const why = `No head has a score: ${behaviour.label} cannot be measured on this text.`;
        return [h("p", { class: "qx-note" }, why)];
      }
      const [first, last] = [all[0].score, all.at(-1).score]; // best and worst in this order
      keep.value = state.keep ?? 0;
      const limit = last + ((first - last) * keep.value) / 1000;
      const passing = all.filter(({ score }) => sign * (score - limit) <= 1e-9);
      kept.textContent = `${state.highFirst ? "≥" : "≤"} ${limit.toFixed(2)}: ${passing.length} of ${all.length}`;
      keep.setAttribute("aria-valuetext", kept.textContent);
      return [h("div", { class: "qx-ranking", role: "presentation" },
        ...passing.slice(0, MOST_RANKED).map(({ layer, head, score }) =>
          thumbnail(layer, head, `${layer.index}·${head}\n${score.toFixed(2)}`)))];
    }

    function draw() {
      const behaviour = measure();
      const looked = state.sort === "cell" ? [state.query, state.key] : [];
      const now = [state.sort, state.highFirst, state.keep, state.colours, state.view, ...looked].join();
      sort.value = state.sort;
      order.value = state.highFirst ? "high" : "low";
      views.value = state.view;
      if (now !== drawn) {
        list.replaceChildren(...(behaviour ? ranking(behaviour) : grid()));
        filter.hidden = !behaviour || !list.querySelector("[role=option]");
        columns.hidden = Boolean(behaviour);
        const captions = filter.hidden ? "" : ` Under each head: layer·head, score${many ? `; the first ${MOST_RANKED}` : ""}.`;
        help.textContent = [data.views.find(({ name }) => name === state.view).help,
          behaviour ? `${behaviour.help}.${captions}` : ""].filter(Boolean).join(" ");
        drawn = now;
      }
      heatRow.hidden = !behaviour || !many;
      if (!heatRow.hidden) drawHeat(scoresOf(behaviour), behaviour.label);
      const is = (at) => (option) => at && headOf(option).layer === at.layer && headOf(option).head === at.head;
      for (const option of list.querySelectorAll("[role=option]")) {
        option.classList.toggle("qx-pinned", Boolean(is(state.pinned)(option)));
        option.classList.toggle("qx-off", isOff(headOf(option)));
      }
      const one = mark(list, is(state));
      if (one && one !== sought) bring(one);
      sought = one;
    }

    /** Scroll the box, and not the page, to a head. */
    function bring(option) {
      const box = heads.getBoundingClientRect(), at = option.getBoundingClientRect();
      const top = box.top + columns.offsetHeight, left = box.left + 40; // what stays in place over the scrolled heads
      if (at.top < top || at.bottom > box.bottom) heads.scrollTop += at.top - (top + box.bottom) / 2;
      if (at.left < left || at.right > box.right) heads.scrollLeft += at.left - (left + box.right) / 2;
    }
    const controls = h("div", { class: "qx-tools" }, h("label", {}, "Heads by ", sort), h("label", {}, "Weights ", views), filter);
    const heads = h("div", { class: "qx-heads", style: `--heads: ${data.heads}; --groups: ${data.groups}` }, columns, list);
    return { draw, element: h("div", { class: "qx-overview" }, controls, help, heatRow, heads) };
  }

  // -- one head's map -------------------------------------------------------------------------------

  function makeMap(which) {
    const title = h("h3", {}), note = h("p", { class: "qx-note" });
    const canvas = h("canvas", { tabindex: 0, role: "application", "aria-roledescription": "attention map",
      onclick: (event) => at(event) && (canvas.focus(), change(at(event))),
      onmousemove: (event) => hover(event), onmouseleave: () => hover(null),
      onwheel: scroll, onkeydown: press });
    const bars = h("ol", { class: "qx-bars" }), barsTitle = h("h3", {}), top = h("div", {}, barsTitle, bars);
    const tip = h("div", { class: "qx-tip", "aria-hidden": true, hidden: true }); // the readout says the same
    const element = h("figure", {}, title, note, canvas, tip);
    let view = { row: 0, column: 0, span: T }; // which tokens are seen
    let image = null, imageOf = null; // the whole map at one pixel a cell

    const side = () => canvas.clientWidth - GUTTER;
    const at = (event) => {
      const box = canvas.getBoundingClientRect(), size = side() / view.span;
      const column = Math.floor((event.clientX - box.left - GUTTER) / size);
      const row = Math.floor((event.clientY - box.top - GUTTER) / size);
      const inside = Math.min(row, column) >= 0 && Math.max(row, column) < view.span;
      return inside ? { query: view.row + row, key: view.column + column } : null;
    };

    /** Tell about the cell under the cursor, beside it. */
    function hover(event) {
      const one = event && at(event);
      say(one ? { ...which(), ...one } : null);
      tip.hidden = !one;
      if (!one) return;
      tip.textContent = `${name(one.query)} → ${name(one.key)}: ${told({ ...which(), ...one })}`;
      const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
      const left = x > box.width / 2 ? x - 12 - tip.offsetWidth : x + 14;
      tip.style.translate = `${Math.max(0, left)}px ${canvas.offsetTop + y + (y > box.height / 2 ? -8 - tip.offsetHeight : 14)}px`;
    }

    function press(event) {
      const { query, key } = state, last = T - 1;
      const to = {
        ArrowLeft: { key: key - 1 }, ArrowRight: { key: key + 1 }, Home: { key: 0 }, End: { key: last },
        ArrowUp: { query: query - 1 }, ArrowDown: { query: query + 1 },
        PageUp: { query: Math.max(0, query - 10) }, PageDown: { query: Math.min(last, query + 10) },
        "+": { zoom: state.zoom * 2 }, "-": { zoom: state.zoom / 2 },
      }[event.key];
      if (!to) return;
      event.preventDefault();
      event.stopPropagation();
      const fits = Object.values(to)[0];
      if ("zoom" in to) zoom(fits);
      else if (fits >= 0 && fits <= last) change(to);
    }

    function scroll(event) {
      if (state.zoom === 1) return; // the page scrolls
      const most = T - view.span, step = Math.ceil(view.span / 12);
      const moved = (from, delta) => Math.max(0, Math.min(most, from + Math.sign(delta) * step));
      const to = { row: moved(view.row, event.deltaY), column: moved(view.column, event.deltaX) };
      if (to.row === view.row && to.column === view.column) return; // at its end: the page goes on
      event.preventDefault();
      Object.assign(view, to);
      paint();
    }

    /** Move the view as little as brings the chosen cell into it. */
    function follow() {
      const span = Math.max(Math.min(8, T), Math.ceil(T / state.zoom));
      const half = Math.floor(span / 2);
      if (span !== view.span) view = { row: state.query - half, column: state.key - half };
      const within = (low, value, high) => Math.max(low, Math.min(value, high));
      const into = (start, place) => within(0, within(place - span + 1, start, place), T - span);
      view = { span, row: into(view.row, state.query), column: into(view.column, state.key) };
    }

    function render(where) {
      const now = [where.layer, ...members(where), state.colours, state.mask, state.view].join();
      if (now === imageOf) return;
      const bytes = layers.get(where.layer), start = where.head * T * T, reasons = data.heads * T * T;
      const colours = new Uint32Array(T * T);
      for (let i = 0; i < colours.length; i++) {
        const hidden = state.mask && bytes[reasons + i];
        const byte = state.view === "raw" && state.over === "head" ? bytes[start + i]
          : Math.round(255 * Math.sqrt(cell(where, Math.floor(i / T), i % T)[0]));
        colours[i] = hidden ? 0 : ready.palette.words[byte];
      }
      image = pixels(T, colours);
      imageOf = now;
    }

    /** Lay hatching over the cells hidden for one reason. */
    function veil(pen, where, reason, size, ratio, ink) {
      const bytes = layers.get(where.layer), reasons = data.heads * T * T;
      const shape = new Uint32Array(T * T).map((_, i) => (bytes[reasons + i] === reason ? 0xff000000 : 0));
      const sheet = h("canvas", { width: Math.round(size * ratio), height: Math.round(size * ratio) });
      const over = sheet.getContext("2d");
      over.imageSmoothingEnabled = false;
      over.drawImage(pixels(T, shape), view.column, view.row, view.span, view.span, 0, 0, sheet.width, sheet.height);
      over.globalCompositeOperation = "source-in";
      over.scale(ratio, ratio);
      over.fillStyle = over.createPattern(hatch(reason, ink), "repeat");
      over.fillRect(0, 0, size, size);
      pen.drawImage(sheet, GUTTER, GUTTER, size, size);
    }

    function paint() {
      const where = which();
      if (!where || !layers.has(where.layer) || !canvas.clientWidth) return;
      const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth;
      const size = side(), each = size / view.span;
      canvas.width = canvas.height = Math.round(width * ratio);
      const pen = canvas.getContext("2d"), { color: ink, backgroundColor: paper } = getComputedStyle(root);
      pen.scale(ratio, ratio);
      render(where);
      pen.imageSmoothingEnabled = each < 1;
      pen.drawImage(image, view.column, view.row, view.span, view.span, GUTTER, GUTTER, size, size);
      if (state.mask) for (const reason of data.reasons) veil(pen, where, reason, size, ratio, ink);
      const x = (token) => GUTTER + (token - view.column) * each, y = (token) => GUTTER + (token - view.row) * each;
      if (state.step) { // what is not yet written
        const written = Math.max(GUTTER, y(data.steps[state.step - 1].position + 1));
        pen.fillStyle = paper;
        pen.globalAlpha = 0.8;
        pen.fillRect(GUTTER, written, size, Math.max(0, GUTTER + size - written));
        pen.globalAlpha = 1;
      }
      labels(pen, view.row, each, false, state.query, ink, paper);
      labels(pen, view.column, each, true, state.key, ink, paper);
      pen.save();
      pen.beginPath();
      pen.rect(GUTTER - 1, GUTTER - 1, size + 2, size + 2);
      pen.clip();
      for (const [colour, line] of [[paper, 3], [ink, 1]]) { // seen on light cells and on dark ones
        pen.strokeStyle = colour;
        pen.lineWidth = line;
        if (state.direction === "query") pen.strokeRect(GUTTER, y(state.query), size, each);
        else pen.strokeRect(x(state.key), GUTTER, each, size);
        const grow = Math.max(0, 7 - each) / 2;
        pen.strokeRect(x(state.key) - grow, y(state.query) - grow, each + 2 * grow, each + 2 * grow);
      }
      pen.restore();
      pen.globalAlpha = 0.3;
      pen.strokeStyle = ink;
      pen.strokeRect(GUTTER - 0.5, GUTTER - 0.5, size + 1, size + 1);
    }

    /** Token labels down the side, or turned along the top; every n-th where there is no room. */
    function labels(pen, start, each, turned, chosen, ink, paper) {
      const every = Math.ceil(LABEL / each), height = Math.min(12, Math.max(LABEL, each));
      pen.textAlign = turned ? "left" : "right";
      pen.textBaseline = "middle";
      const write = (token, bold) => {
        pen.save();
        const place = Math.min(GUTTER + (token - start + 0.5) * each, canvas.clientWidth - LABEL + 2);
        if (turned) pen.translate(place, GUTTER - 6), pen.rotate(-Math.PI / 2);
        else pen.translate(GUTTER - 6, place);
        pen.font = `${bold ? "600 " : ""}${height}px system-ui, sans-serif`;
        const shown = clip(data.tokens[token].text, 12);
        if (bold) {
          const wide = pen.measureText(shown).width + 6;
          pen.fillStyle = ink;
          pen.fillRect(turned ? -3 : 3 - wide, -LABEL / 2 - 2, wide, LABEL + 4);
        }
        pen.fillStyle = bold ? paper : ink;
        pen.globalAlpha = bold ? 1 : 0.8;
        pen.fillText(shown, 0, 0.5, GUTTER - 10);
        pen.restore();
      };
      const seen = chosen >= start && chosen < start + view.span;
      for (let i = 0; i < view.span; i += every) {
        if (!seen || Math.abs(start + i - chosen) * each > LABEL + 2) write(start + i, false);
      }
      if (seen) write(chosen, true);
    }

    function draw() {
      const where = which();
      element.hidden = top.hidden = !where;
      if (!where || !layers.has(where.layer)) return;
      const layer = aboutLayer(where.layer);
      const same = where.layer === state.layer && where.head === state.head, count = members(where).length;
      const kept = where !== state.pinned ? "" : same ? ", kept: now choose another" : ", kept";
      const whose = { head: `head ${where.head}`, group: `key group ${keyHead(where.head)}`, layer: "all heads" }[state.over];
      title.textContent = `Layer ${where.layer}, ${whose}${kept}`;
      const mean = { head: `key head ${keyHead(where.head)}`, group: `mean of its ${count} heads`, layer: `mean of ${count} heads` }[state.over];
      note.textContent = `${mean} · ${layer.badge}: ${layer.why}`;
      follow();
      paint();
      const told = sentence({ ...where, query: state.query, key: state.key });
      canvas.setAttribute("aria-label", `${title.textContent}. ${told}`);
    }

    /** The largest weights in the row of a cell; or in its column, of the queries that see the key. */
    function list({ query, key }) {
      const where = which();
      if (!where || !layers.has(where.layer)) return;
      const asQuery = state.direction === "query", one = asQuery ? query : key;
      const all = Array.from({ length: T }, (_, i) => [i, cell(where, ...(asQuery ? [one, i] : [i, one]))]);
      const best = all.filter(([, [weight, why]]) => weight && !why).sort((a, b) => b[1][0] - a[1][0]).slice(0, 5);
      const head = state.pinned ? `, layer ${where.layer} head ${where.head}` : "";
      barsTitle.textContent = (asQuery ? `Query ${name(one)} looks most at` : `Key ${name(one)} is seen most by`) + head;
      bars.replaceChildren(...best.map(([i, [weight]]) => bar(name(i), weight, digits(weight))));
      if (!best.length) bars.replaceChildren(h("li", { class: "qx-note" }, "nothing: it is padding, or nothing is left"));
    }
    return { draw, paint, list, element, top };
  }

  function zoom(factor) {
    change({ zoom: Math.max(1, Math.min(factor, 2 ** Math.ceil(Math.log2(Math.max(1, T / 8))))) });
  }

  function sentence(at) {
    const notes = [at.query, at.key].map((i) => data.tokens[i].note).filter(Boolean);
    const aside = notes.length ? ` (${[...new Set(notes)].join("; ")})` : "";
    return `Query ${name(at.query)}, key ${name(at.key)}: ${told(at)}${aside}`;
  }

  function told(at) {
    const [weight, why] = cell(at, at.query, at.key);
    const mean = state.over === "head" ? "" : `mean of ${members(at).length} heads, `;
    const what = mean + { raw: "weight", rest: "share without the first token", value: "share by value" }[state.view];
    return why ? `hidden: ${REASONS[why]}` : `${what} ${digits(weight)}`;
  }

  /** Tell about a cell and its row; null = the chosen one. */
  function say(at) {
    at ??= { layer: state.layer, head: state.head, query: state.query, key: state.key };
    if (!layers.has(at.layer)) return;
    readout.textContent = sentence(at);
    for (const map of maps) map.list(at);
  }

  function toolbar() {
    const mask = h("input", { type: "checkbox", checked: true, onchange: () => change({ mask: mask.checked }) });
    const colours = select("Colours", [["viridis", "viridis"], ["cividis", "cividis"]], (value) => change({ colours: value }));
    const over = select("Map of", [["head", "one head"], ["group", "its key group"], ["layer", "its layer"]], (value) => change({ over: value }));
    const here = () => ({ layer: state.layer, head: state.head });
    const pin = button("Compare", null, () => change({ pinned: state.pinned ? null : here() }));
    toolbar.draw = () => {
      pin.setAttribute("aria-pressed", Boolean(state.pinned));
      mask.checked = state.mask;
      over.value = state.over;
      colours.value = state.colours;
      pin.title = state.pinned ? "Show one head again" : "Keep this head beside the next ones";
    };
    return h("div", { class: "qx-tools" }, h("label", {}, "Map of ", over), pin,
      h("span", { role: "group", "aria-label": "Zoom" },
        button("−", "Zoom out", () => zoom(state.zoom / 2)), button("+", "Zoom in", () => zoom(state.zoom * 2))),
      h("label", {}, mask, " Mask"), h("label", {}, "Colours ", colours));
  }

  function drawLegend() {
    const ticks = [0, 0.05, 0.25, 0.5, 1];
    const ink = getComputedStyle(root).color;
    const slides = [state, state.pinned].some((shown) => shown && aboutLayer(shown.layer).sliding);
    const reasons = state.mask ? data.reasons.filter((reason) => reason !== 2 || slides) : [];
    legend.replaceChildren(
      h("div", { class: "qx-scale", role: "img", "aria-label": "Colours of the weights from 0 to 1" },
        h("div", { style: `background: ${ready.palette.gradient}` }),
        ...ticks.map((w) => h("span", { style: `left: ${100 * Math.sqrt(w)}%` }, `${w}`))),
      ...reasons.map((reason) => h("span", {},
        h("i", { style: `background-image: url(${hatch(reason, ink).toDataURL()})` }), REASONS[reason])));
  }

  // -- the text -------------------------------------------------------------------------------------

  function makeText() {
    const list = h("div", { role: "listbox", "aria-label": "Tokens", class: "qx-text", dir: data.rtl ? "rtl" : "ltr" });
    const spans = data.tokens.map(({ text, special }, i) =>
      h("span", { role: "option", "data-token": i, class: special ? "qx-special" : "", dir: "auto" }, text));
    spans.forEach((span, i) => list.append(span, ...(data.tokens[i].text.endsWith("↵") ? [h("br")] : [])));
    walkable(list, (option) => choose(Number(option.dataset.token)), data.rtl);
    const group = unique();
    const turn = (direction) => change({ direction, query: chosenToken(), key: chosenToken() });
    const radio = (value, label) => h("label", {}, h("input", { type: "radio", name: group, value,
      checked: value === state.direction, onchange: () => turn(value) }), ` ${label}`);
    const element = h("div", {},
      h("fieldset", { class: "qx-tools" }, h("legend", {}, "The chosen token"),
        radio("query", "looks at"), radio("key", "is seen by")), list);

    function draw() {
      const one = chosenToken(), asQuery = state.direction === "query";
      const written = state.step ? data.steps[state.step - 1].position : T;
      root.classList.toggle("qx-seen-by", !asQuery);
      element.querySelector(`input[value="${state.direction}"]`).checked = true;
      spans.forEach((span, i) => {
        const { id, note, text } = data.tokens[i];
        const [weight, why] = cell(state, ...(asQuery ? [one, i] : [i, one]));
        const how = i === one ? "chosen" : why ? REASONS[why] : `weight ${digits(weight)}`;
        span.style.setProperty("--part", why ? 0 : Math.sqrt(weight));
        span.classList.toggle("qx-unwritten", i > written + 1);
        span.classList.toggle("qx-next", i === written + 1);
        span.title = `${i}, id ${id}${note && `, ${note}`}: ${how}`;
        span.setAttribute("aria-label", `Token ${i} ${text}, ${how}`);
      });
      const { offsetTop: top, offsetHeight: height } = mark(list, (span) => Number(span.dataset.token) === one);
      const hidden = top < list.scrollTop || top + height > list.scrollTop + list.clientHeight;
      if (hidden) list.scrollTop = top - list.clientHeight / 2; // the box alone, not the page
    }
    return { draw, element };
  }

  /** Choose a token, and with it the step of generation that read it. */
  function choose(token) {
    const step = data.steps.findIndex((s) => s.position === token) + 1;
    const anew = state.direction === "query" ? { key: null } : {};
    change({ ...anew, [state.direction]: token, step: step || (token === T - 1 ? data.steps.length : state.step) });
  }

  // -- the steps of generation ------------------------------------------------------------------------

  function makeSteps() {
    if (!data.steps.length) return { draw: () => {}, element: null };
    const range = slider("Step of generation", data.steps.length, (value) => go(value));
    range.min = 1;
    const back = button("◀", "Step back", () => go(state.step - 1));
    const on = button("▶", "Step on", () => go(state.step + 1));
    const told = h("output", { class: "qx-told" }), chances = h("ol", { class: "qx-bars" });
    const go = (step) => {
      if (step < 1 || step > data.steps.length) return;
      change({ step, direction: "query", query: data.steps[step - 1].position, key: null });
    };
    function draw() {
      const step = data.steps[state.step - 1];
      range.value = state.step;
      back.setAttribute("aria-disabled", state.step === 1); // not `disabled`: that would drop the focus
      on.setAttribute("aria-disabled", state.step === data.steps.length);
      const how = state.step === 1 ? "the last row of the prompt" : "one row, decoded with the cache";
      told.textContent = `Step ${state.step} of ${data.steps.length}: after token ${name(step.position)} (${how}) `
        + `came “${step.text}”, probability ${chance(step.probability)}`;
      range.setAttribute("aria-valuetext", told.textContent);
      chances.replaceChildren(...step.alternatives.map(({ text, id, probability }) =>
        bar(`“${text}”`, probability, chance(probability), id === step.id)));
    }
    return { draw, element: h("div", { class: "qx-steps" },
      h("div", { class: "qx-tools" }, back, range, on), told, chances, h("p", { class: "qx-note" }, `${data.check}. Probabilities are the model's, before temperature and cuts.`)) };
  }

  // -- the logit lens ---------------------------------------------------------------------------------

  function makeLens() {
    const body = h("tbody", {}), told = h("p", { class: "qx-note" });
    const table = h("table", { "aria-label": "Logit lens" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "after"),
      ...[1, 2, 3, 4, 5].map((rank) => h("th", { scope: "col" }, `${rank}`)))), body);
    if (!data.lens.length) told.textContent = "This model has no head over the vocabulary.";
    const element = h("div", { class: "qx-lens" }, told, ...(data.lens.length ? [table] : []));
    let shown = null;

    async function draw() {
      const token = chosenToken();
      if (!data.lens.length || shown === token || element.hidden) return;
      shown = token;
      const rows = await source.load(`lens ${token}`);
      if (shown !== token) return; // another was chosen meanwhile
      const next = data.tokens[token + 1]?.id;
      told.textContent = `What would come after token ${name(token)} if the stream were read off here.`
        + (next === undefined ? "" : " The token that does come is underlined.");
      body.replaceChildren(...rows.map((row, i) => h("tr", {}, h("th", { scope: "row" }, data.lens[i]),
        ...row.map(({ text, id, probability }) => h("td",
          { style: `--part: ${probability}`, title: `id ${id}`, class: id === next ? "qx-drawn" : "" },
          h("span", {}, text), h("small", {}, chance(probability)))))));
    }
    return { draw, element };
  }

  // -- heads off: what do they cause? ------------------------------------------------------------------

  function isOff({ layer, head }) {
    return state.off.includes(`${layer}.${head}`);
  }

  /** Switch heads off; on again, if all of them are off. */
  function switchHeads(heads) {
    if (!cause.element) return; // a page has no model to ask
    const names = heads.map(({ layer, head }) => `${layer}.${head}`), others = state.off.filter((one) => !names.includes(one));
    change({ off: heads.every(isOff) ? others : [...others, ...names] });
  }

  function makeCause() {
    if (source.whole || !data.lens.length) return { draw: () => {}, element: null };
    const size = data.heads / data.groups;
    const some = (from, count) => Array.from({ length: count }, (_, i) => ({ layer: state.layer, head: from + i }));
    const sets = [["this head", () => some(state.head, 1)], ["its key group", () => some(keyHead(state.head) * size, size)],
      ["its layer", () => some(0, data.heads)]];
    const buttons = sets.map(([label, heads]) => button(label, `Switch off ${label}`, () => switchHeads(heads())));
    const all = button("all on", "Switch all heads on again", () => change({ off: [] }));
    const to = select("What they say instead", [["zero", "nothing"], ["mean", "their mean"]], (value) => change({ to: value }));
    const list = h("p", { class: "qx-note" }), told = h("output", { class: "qx-told" });
    const [before, after] = ["as it is", "without them"].map((label) => {
      const bars = h("ol", { class: "qx-bars" });
      return { bars, element: h("div", {}, h("h3", {}, `The answer ${label}`), bars) };
    });
    const element = h("div", { class: "qx-cause" },
      h("div", { class: "qx-tools" }, "Switch off ", h("span", { role: "group", "aria-label": "Switch off" }, ...buttons), all,
        h("label", {}, "They say ", to, " instead")),
      list, told, h("div", { class: "qx-tops" }, before.element, after.element),
      h("p", { class: "qx-note" }, "The key o switches the head off that has the focus. The difference is what the head causes here, "
        + "with whatever later layers make of it; its weights alone do not tell that."));
    let shown = null;

    async function draw() {
      sets.forEach(([, heads], i) => buttons[i].setAttribute("aria-pressed", heads().every(isOff)));
      all.setAttribute("aria-disabled", !state.off.length);
      const named = state.off.slice(0, 12).map((one) => one.replace(".", "·")).join(", ");
      const more = state.off.length > 12 ? ` and ${state.off.length - 12} more` : "";
      list.textContent = state.off.length ? `Off, as layer·head: ${named}${more}.` : "No head is off.";
      const asked = ["without", state.query, state.to, ...state.off].join(" ");
      if (element.hidden || asked === shown) return;
      shown = asked;
      const excuse = setTimeout(() => (told.textContent = "The model reads the text without them …"), 300);
      let answer, fault;
      try {
        answer = await source.load(asked);
      } catch (error) {
        fault = error.message;
      }
      clearTimeout(excuse);
      if (shown !== asked) return; // others were switched meanwhile
      if (fault) {
        told.textContent = fault;
        before.bars.replaceChildren(), after.bars.replaceChildren();
        return;
      }
      const [was, is] = answer.chances.map(chance), sign = answer.delta < 0 ? "−" : "+";
      told.textContent = `After token ${name(state.query)}, “${answer.token}” ${answer.comes ? "comes next" : "is likeliest"}: its logit changes by `
        + `${sign}${Math.abs(answer.delta).toFixed(2)}, its probability from ${was} to ${is}.`;
      for (const [place, rows] of [[before, answer.before], [after, answer.after]]) {
        place.bars.replaceChildren(...rows.map(({ text, id, probability }) =>
          bar(`“${text}”`, probability, chance(probability), id === answer.id)));
      }
    }
    return { draw, element };
  }

  // -- change and draw --------------------------------------------------------------------------------

  function change(to) {
    Object.assign(state, to);
    for (const trait of ["layer", "head", "query"]) {
      if (trait in to && source.get(trait) !== state[trait]) source.set(trait, state[trait]);
    }
    draw().then(() => source.remember(address()));
  }

  const excuse = "Waiting for the kernel: it is busy, or it has stopped. Then run the cell again.";
  let turn = 0;
  async function draw() {
    const mine = ++turn;
    const needed = [state.layer, ...(state.pinned ? [state.pinned.layer] : [])];
    const waiting = setTimeout(() => (notice.textContent = excuse), 2000);
    ready.thumbnails ??= await source.load("thumbnails");
    ready.tables ??= await source.load("colours");
    ready.norms ??= new Float32Array((await source.load("norms")).slice().buffer);
    for (const index of needed) if (!layers.has(index)) layers.set(index, await source.load(`layer ${index}`));
    if (mine !== turn) return clearTimeout(waiting); // a later change draws
    state.key ??= strongest(state); // a query was chosen: begin at what it looks at
    const looks = state.sort === "cell" ? await looking() : null;
    clearTimeout(waiting);
    if (mine !== turn) return;
    ready.looks = looks;
    if (notice.textContent === excuse) notice.textContent = "";
    if (ready.name !== state.colours) {
      Object.assign(ready, { name: state.colours, palette: palette(ready.tables, state.colours) });
    }
    root.classList.toggle("qx-comparing", Boolean(state.pinned));
    for (const part of [overview, ...maps, text, steps, lens, cause, toolbar]) part.draw();
    drawLegend();
    say(null);
  }

  const repaint = () => ready.palette && (maps.forEach((map) => map.paint()), drawLegend());
  const resized = new ResizeObserver(repaint);
  resized.observe(root);
  const themed = new MutationObserver(repaint); // JupyterLab names its theme on the body
  themed.observe(document.body, { attributes: true });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", repaint);
  const elsewhere = () => source.whole && change(recalled()); // the address was changed by hand, or a link followed
  window.addEventListener("hashchange", elsewhere);
  for (const trait of ["layer", "head", "query"]) {
    source.listen(trait, () => source.get("data") === data && source.get(trait) !== state[trait] && change({ ...fresh(), [trait]: source.get(trait) }));
  }
  draw();
  return () => {
    for (const observer of [resized, themed]) observer.disconnect();
    dark.removeEventListener("change", repaint);
    window.removeEventListener("hashchange", elsewhere);
    source.close();
  };
}
