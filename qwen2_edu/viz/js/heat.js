// A measure of all heads as a picture of one cell each, where there are too many to look through.

/** act(key, head): what a letter does on a head, as in the ranking; answers whether it did something. */
function makeHeat(shared, act) {
  const { data, state, ready, change, fresh, aboutLayer, diverging, place } = shared;
  const heat = h("canvas", { class: "qx-heat", tabindex: 0, role: "application", "aria-roledescription": "heat-map of layers and heads",
    onclick: (event) => choose(under(event)), onmousemove: (event) => tell(under(event)), onmouseleave: () => tell(cursor ?? chosen()),
    onkeydown: press, onblur: () => cursor && (cursor = null, redraw()) });
  const told = h("output", { class: "qx-read" }, "…"), scale = h("div", { class: "qx-scale", role: "img" });
  const element = h("div", { class: "qx-heats" }, heat, h("div", { class: "qx-foot" }, scale,
    h("div", {}, told, h("p", { class: "qx-note" }, "Rows are layers, columns heads; arrow keys move, Enter chooses."))));
  const LEFT = 22, TOP = 14, GAP = 6, WIDE = Math.max(4, Math.floor(390 / data.heads)), HIGH = Math.max(3, Math.min(14, Math.floor(216 / data.layers.length)));
  const rows = data.layers.length, height = TOP + HIGH * rows + 2;
  let measure = null, cells = null; // painted once: a key moves the frame alone
  let cursor = null; // the cell that keys have moved to, {row, column}; the column after the last head is the MLP's

  const count = () => data.heads + (measure.mlps ? 1 : 0), width = () => left(count()) + 2;
  const left = (column) => LEFT + column * WIDE + (column >= data.heads && measure.mlps ? GAP : 0), top = (row) => TOP + row * HIGH;
  const chosen = () => ({ row: data.layers.indexOf(aboutLayer(state.layer)), column: state.head });
  const headAt = ({ row, column }) => ({ layer: data.layers[row].index, head: column });

  function under({ offsetX, offsetY }) {
    const within = (place, most) => Math.max(0, Math.min(most - 1, Math.floor(place)));
    const column = within((offsetX - LEFT) / WIDE, count());
    return { row: within((offsetY - TOP) / HIGH, rows), column: offsetX < left(column) ? column - 1 : column };
  }

  function tell({ row, column }) {
    const { layer, head } = headAt({ row, column }), mlp = head === data.heads, score = mlp ? measure.mlps[row] : measure.scores[row][head];
    told.firstChild.data = `Layer ${layer} ${mlp ? "MLP" : `head ${head}`}: ${score == null ? "no score" : measure.said(score)}`;
    heat.setAttribute("aria-label", `${measure.label} of ${data.heads} heads in ${rows} layers, from ${measure.said(measure.low)} to ${measure.said(measure.high)}. ${told.textContent}`);
  }

  function choose({ row, column }) {
    if (column < data.heads) change({ ...headAt({ row, column }), ...fresh() });
  }

  function press(event) {
    const { row, column } = cursor ?? chosen(), last = count() - 1;
    const to = { ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
      Home: [row, 0], End: [row, last], PageUp: [0, column], PageDown: [rows - 1, column] }[event.key];
    if (event.key === "Enter" || event.key === " ") choose({ row, column });
    else if (!to && !(column < data.heads && act(event.key, headAt({ row, column })))) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook would move to another cell
    if (!to || to[0] < 0 || to[0] >= rows || to[1] < 0 || to[1] > last) return;
    cursor = { row: to[0], column: to[1] };
    redraw();
  }

  /** Colours of scores from low to high; of what can be below 0, of the paper at 0. */
  function colouring({ low, high, signed }) {
    const { words, gradient, name } = signed ? diverging() : { ...ready.palette, name: state.colours };
    const at = signed ? (score) => place(score / high) : (score) => Math.round(255 * Math.sqrt((score - low) / (high - low)));
    return { gradient, name, colour: (score) => `rgb(${words[at(score)] & 255} ${(words[at(score)] >> 8) & 255} ${(words[at(score)] >> 16) & 255})` };
  }

  function paint(colour, ratio) {
    const canvas = h("canvas", { width: width() * ratio, height: height * ratio }), pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    measure.scores.forEach((heads, row) => [...heads, ...(measure.mlps ? [measure.mlps[row]] : [])].forEach((score, column) => {
      if (score == null) return;
      pen.fillStyle = colour(score);
      pen.fillRect(left(column), top(row), WIDE - 1, HIGH - 1);
    }));
    return canvas;
  }

  /** Of a measure, as it is weighed now: {label, scores, signed, mlps}. */
  function draw(shown, scores) {
    const all = [...scores.flat(), ...(shown.mlps ?? [])].filter((score) => score !== null);
    const far = most(all), [low, high] = shown.signed ? [-far, far] : [Math.min(...all, 0), Math.max(...all, Math.min(...all, 0) + 1e-9)];
    const said = shown.signed ? share : (score) => score.toFixed(2);
    measure = { label: shown.label, signed: shown.signed, mlps: shown.mlps?.length ? shown.mlps : null, scores, low, high, said };
    redraw();
  }

  function redraw() {
    if (!measure || !ready.palette) return;
    const ratio = window.devicePixelRatio || 1, { low, high, said, signed, mlps } = measure;
    Object.assign(heat, { width: width() * ratio, height: height * ratio });
    Object.assign(heat.style, { width: `${width()}px`, height: `${height}px` });
    const pen = heat.getContext("2d"), { color: ink, backgroundColor: paper } = getComputedStyle(shared.root);
    pen.scale(ratio, ratio);
    const { gradient, name, colour } = colouring(measure), now = [name, ratio].join();
    if (cells?.of !== measure.scores || cells.as !== now) cells = { of: measure.scores, as: now, canvas: paint(colour, ratio) };
    pen.drawImage(cells.canvas, 0, 0, width(), height);
    Object.assign(pen, { fillStyle: ink, font: "10px system-ui, sans-serif", textBaseline: "middle" });
    for (let i = 0, every = Math.ceil(10 / HIGH); i < rows; i += every) pen.fillText(`${data.layers[i].index}`, 4, top(i + 0.5));
    for (let i = 0, every = Math.ceil(14 / WIDE); i < data.heads; i += every) pen.fillText(`${i}`, left(i) + 1, 7);
    if (mlps) pen.fillText(WIDE < 24 ? "M" : "MLP", left(data.heads) + 1, 7);
    const frame = ({ row, column }) => pen.strokeRect(left(column) - 1, top(row) - 1, WIDE + 1, HIGH + 1);
    const cellOf = ({ layer, head }) => ({ row: data.layers.indexOf(aboutLayer(layer)), column: head });
    for (const [at, dash] of [[state, []], ...state.pinned.map((one) => [one, [3, 2]])]) {
      for (const [shade, line, dashed] of [[paper, 4, []], [ink, 2, dash]]) { // seen on dark cells and on light ones
        pen.setLineDash(dashed);
        Object.assign(pen, { lineWidth: line, strokeStyle: shade });
        frame(cellOf(at));
      }
    }
    pen.setLineDash([]);
    const corners = state.marked.map(cellOf).map(({ row, column }) => [left(column) + WIDE - 1, top(row)]);
    for (const [shade, side] of [[paper, 7], [ink, 5]]) { // marked: a corner
      pen.fillStyle = shade;
      pen.beginPath();
      for (const [x, y] of corners) pen.moveTo(x - side, y), pen.lineTo(x, y), pen.lineTo(x, y + side);
      pen.fill();
    }
    for (const [shade, line] of [[paper, 4], [ink, 2]]) { // off: crossed out
      Object.assign(pen, { strokeStyle: shade, lineWidth: line });
      pen.beginPath();
      for (const { row, column } of state.off.map((one) => cellOf(headNamed(one)))) {
        const x = left(column) + (WIDE - 1) / 2, y = top(row) + (HIGH - 1) / 2;
        for (const turn of [-3, 3]) pen.moveTo(x - 3, y - turn), pen.lineTo(x + 3, y + turn);
      }
      pen.stroke();
    }
    if (cursor) for (const [shade, line] of [[paper, 5], ["#0072b2", 3]]) Object.assign(pen, { strokeStyle: shade, lineWidth: line }), frame(cursor); // as the focus is ringed
    tell(cursor ?? chosen());
    if (scale.dataset.of === [name, low, high].join()) return; // a key makes nothing anew
    scale.dataset.of = [name, low, high].join();
    scale.setAttribute("aria-label", `Colours from ${said(low)} to ${said(high)}`);
    scale.replaceChildren(h("div", { style: `background: ${gradient}` }), ...(signed ? [low, 0, high] : [low, high]).map((score, i, { length }) =>
      h("span", { style: `left: ${(100 * i) / (length - 1)}%` }, score ? said(score) : "0")));
  }

  return { draw, redraw, element };
}
