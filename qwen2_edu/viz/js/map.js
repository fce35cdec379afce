// The map of one head, or of the mean of several.

const LABEL = 11; // pixels a label needs
const LETTERS = 12; // of a token at most

/** Pixels for the labels left of a map and above it: as the longest of them needs. */
function gutterOf(tokens) {
  const pen = h("canvas", {}).getContext("2d");
  pen.font = "600 12px system-ui, sans-serif";
  return Math.max(30, Math.min(88, 16 + Math.ceil(Math.max(...tokens.map(({ text }) => pen.measureText(clip(text, LETTERS)).width)))));
}

/** which: answers the head to draw, or nothing. */
function makeMap(shared, which) {
  const { data, T, state, layers, ready, change, zoom, say, name, other, aboutLayer, keyHead, cell, members, loaded, reasons, sentence, told, cutLook, crossOut, diverging, place, pinHead, gutter: GUTTER } = shared;
  const title = h("h3", {}), note = h("p", { class: "qx-note" });
  const canvas = h("canvas", { tabindex: 0, role: "application", "aria-roledescription": "attention map", style: `--gutter: ${GUTTER}px`,
    onclick: (event) => at(event) && (canvas.focus(), change(at(event))),
    onmousemove: (event) => hover(event), onmouseleave: () => hover(null),
    onwheel: scroll, onkeydown: press });
  const bars = h("ol", { class: "qx-bars" }), barsTitle = h("h3", {}), top = h("div", {}, barsTitle, bars);
  const tip = h("div", { class: "qx-tip", "aria-hidden": true, hidden: true }); // the readout says the same
  walkable(bars, ({ dataset }) => change({ [other()]: Number(dataset.token) }));
  const unpin = button("✕", null, () => pinHead(which()));
  const element = h("figure", {}, title, unpin, note, canvas, tip);
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
    tip.style.translate = `${Math.max(0, Math.min(left, element.clientWidth - tip.offsetWidth))}px ${canvas.offsetTop + y + (y > box.height / 2 ? -8 - tip.offsetHeight : 14)}px`;
  }

  function press(event) {
    const { query, key } = state, last = T - 1;
    if (event.key === "x") return cutLook(), event.stopPropagation();
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
    const minus = where.kept ? null : ready.minus, scale = minus && diverging();
    const now = [where.layer, ...members(where).map(nameOf), state.colours, state.mask, state.view, scale?.name, minus?.of].join();
    if (now === imageOf) return;
    const [one, ...more] = members(where), why = hidden(where);
    const bytes = state.view === "raw" && !more.length && layers.get(one.layer).subarray(one.head * T * T); // as they are
    const colours = new Uint32Array(T * T);
    for (let i = 0; i < colours.length; i++) {
      if (state.mask && why[i]) continue;
      const q = Math.floor(i / T), k = i % T;
      if (minus) colours[i] = scale.words[place(cell(where, q, k)[0] - minus.cell(q, k)[0])];
      else colours[i] = ready.palette.words[bytes ? bytes[i] : Math.round(255 * Math.sqrt(cell(where, q, k)[0]))];
    }
    image = pixels(T, colours);
    imageOf = now;
  }

  /** Why each cell is hidden; of a difference, in both maps. */
  function hidden(where) {
    const minus = !where.kept && ready.minus?.reasons();
    return minus ? reasons(where).map((why, i) => (minus[i] ? why : 0)) : reasons(where);
  }

  /** Lay hatching over the cells hidden for one reason. */
  function veil(pen, where, reason, size, ratio, ink) {
    const why = hidden(where), shape = new Uint32Array(T * T).map((_, i) => (why[i] === reason ? 0xff000000 : 0));
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
    if (!where || !loaded(where) || !canvas.clientWidth) return;
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth;
    const size = side(), each = size / view.span;
    canvas.width = canvas.height = Math.round(width * ratio);
    const pen = canvas.getContext("2d"), { color: ink, backgroundColor: paper } = getComputedStyle(shared.root);
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
    crossOut(pen, where, x, y, each, [paper, ink]);
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
      const middle = GUTTER + (token - start + 0.5) * each, last = canvas.clientWidth - LABEL / 2;
      if (middle > last + 1 && !bold) return; // there is no room
      const place = Math.min(middle, last);
      pen.save();
      if (turned) pen.translate(place, GUTTER - 6), pen.rotate(-Math.PI / 2);
      else pen.translate(GUTTER - 6, place);
      pen.font = `${bold ? "600 " : ""}${height}px system-ui, sans-serif`;
      const shown = clip(data.tokens[token].text, LETTERS);
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
    if (!where && document.activeElement === unpin) shared.root.querySelector(".qx-maps canvas").focus();
    element.hidden = top.hidden = !where;
    if (!where || !loaded(where)) return;
    const layer = aboutLayer(where.layer);
    const same = where.layer === state.layer && where.head === state.head, count = members(where).length;
    const kept = !where.kept ? "" : same ? ", kept: now choose another" : ", kept";
    const { over } = state, marked = over === "marked" && !where.kept;
    const whose = { group: `mean of key group ${keyHead(where.head)}`, layer: "mean of all heads" }[over] ?? `head ${where.head}`;
    const mean = { group: `${count} heads`, layer: `${count} heads` }[over] ?? `key head ${keyHead(where.head)}`;
    const alone = `Layer ${where.layer}, ${whose}${kept}`, about = `${mean} · ${layer.badge}: ${layer.why}`;
    const names = members(where).map(({ layer, head }) => `${layer}·${head}`);
    title.textContent = !marked ? alone : state.marked.length ? count > 1 ? `Mean of ${count} marked heads` : "1 marked head" : `${alone}: none is marked`;
    note.textContent = !marked ? about : !state.marked.length ? "Choose a head and press Mark, or the key m on it; then the next one."
      : `layer·head ${names.slice(0, 12).join(", ")}${count > 12 ? ` and ${count - 12} more` : ""}`;
    if (ready.minus && !where.kept) title.textContent += ` − ${ready.minus.name}`;
    follow();
    paint();
    unpin.hidden = !where.kept;
    unpin.setAttribute("aria-label", `Close layer ${where.layer}, head ${where.head}`);
    const told = sentence({ ...where, query: state.query, key: state.key });
    canvas.setAttribute("aria-label", `${title.textContent}. ${told}`);
  }

  /** The largest weights in the row of a cell; or in its column, of the queries that see the key. */
  function list({ query, key }) {
    const where = which();
    if (!where || !loaded(where)) return;
    const asQuery = state.direction === "query", one = asQuery ? query : key;
    const all = Array.from({ length: T }, (_, i) => [i, cell(where, ...(asQuery ? [one, i] : [i, one]))]);
    const best = all.filter(([, [weight, why]]) => weight && !why).sort((a, b) => b[1][0] - a[1][0]).slice(0, 5);
    const whose = state.pinned.length ? `${title.textContent.replace(/Layer (\d+), head (\d+)/, "$1·$2").replace(/, kept.*| −.*|,/g, "")}: ` : "";
    barsTitle.textContent = whose + (asQuery ? `Query ${name(one)} looks most at` : `Key ${name(one)} is seen most by`);
    const now = JSON.stringify([state.direction, best, barsTitle.textContent]), chosen = ({ dataset }) => Number(dataset.token) === (asQuery ? key : query);
    if (bars.dataset.of === now) return mark(bars, chosen); // the mouse moves over many cells of a row
    bars.dataset.of = now;
    const focused = bars.contains(document.activeElement), lines = best.map(([i, [weight]]) => bar(name(i), weight, digits(weight)));
    lines.forEach((line, at) => {
      line.setAttribute("role", "option");
      line.dataset.token = best[at][0];
      line.title = `Choose it as the ${other()}`;
    });
    bars.replaceChildren(...lines);
    if (best.length) bars.setAttribute("role", "listbox"), bars.setAttribute("aria-label", barsTitle.textContent);
    else bars.removeAttribute("role"), bars.replaceChildren(h("li", { class: "qx-note" }, "nothing: it is padding, or nothing is left"));
    mark(bars, chosen);
    if (focused) bars.querySelector("[tabindex='0']")?.focus({ preventScroll: true });
  }
  return { draw, paint, list, element, top };
}
