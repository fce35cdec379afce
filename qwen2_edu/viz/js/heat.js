// A measure of all heads as a picture of one cell each, where there are too many to look through.

function makeHeat(shared) {
  const { data, state, ready, change, fresh, aboutLayer } = shared;
  const heat = h("canvas", { class: "qx-heat", role: "img", onclick: (event) => change({ ...under(event), ...fresh() }),
    onmousemove: (event) => (heat.title = headName(under(event))) });
  const element = h("div", { class: "qx-heats" }, heat, h("p", { class: "qx-note" }, "Each row a layer, each column a head; the ranking below can be walked by keyboard."));
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

  const rows = data.layers.length, [width, height] = [LEFT + WIDE * data.heads + 2, TOP + HIGH * rows + 2];
  let cells = null; // painted once: a key moves the frame alone

  function paint(scores, low, high, ratio) {
    const canvas = h("canvas", { width: width * ratio, height: height * ratio }), pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    scores.forEach((row, i) => row.forEach((score, head) => {
      if (score === null) return;
      const word = ready.palette.words[Math.round(255 * Math.sqrt((score - low) / (high - low)))];
      pen.fillStyle = `rgb(${word & 255} ${(word >> 8) & 255} ${(word >> 16) & 255})`;
      pen.fillRect(LEFT + head * WIDE, TOP + i * HIGH, WIDE - 1, HIGH - 1);
    }));
    return canvas;
  }

  function draw(scores, label) {
    ready.heat = scores;
    const ratio = window.devicePixelRatio || 1;
    Object.assign(heat, { width: width * ratio, height: height * ratio });
    Object.assign(heat.style, { width: `${width}px`, height: `${height}px` });
    const pen = heat.getContext("2d"), { color: ink, backgroundColor: paper } = getComputedStyle(shared.root);
    pen.scale(ratio, ratio);
    const all = scores.flat().filter((score) => score !== null), low = Math.min(...all, 0), high = Math.max(...all, low + 1e-9);
    const now = [state.colours, ratio].join();
    if (cells?.of !== scores || cells.as !== now) cells = { of: scores, as: now, canvas: paint(scores, low, high, ratio) };
    pen.drawImage(cells.canvas, 0, 0, width, height);
    pen.fillStyle = ink;
    pen.font = "10px system-ui, sans-serif";
    pen.textBaseline = "middle";
    for (let i = 0, every = Math.ceil(10 / HIGH); i < rows; i += every) pen.fillText(`${data.layers[i].index}`, 4, TOP + (i + 0.5) * HIGH);
    for (let i = 0, every = Math.ceil(14 / WIDE); i < data.heads; i += every) pen.fillText(`${i}`, LEFT + i * WIDE + 1, 7);
    for (const [at, dash] of [[state, []], ...state.pinned.map((one) => [one, [3, 2]])]) {
      pen.setLineDash(dash);
      pen.lineWidth = 2;
      pen.strokeStyle = ink;
      pen.strokeRect(LEFT + at.head * WIDE - 1, TOP + data.layers.indexOf(aboutLayer(at.layer)) * HIGH - 1, WIDE + 1, HIGH + 1);
    }
    pen.setLineDash([]);
    const corner = ({ layer, head }) => [LEFT + (head + 1) * WIDE - 1, TOP + data.layers.indexOf(aboutLayer(layer)) * HIGH];
    for (const [colour, side] of [[paper, 7], [ink, 5]]) { // marked: a corner
      pen.fillStyle = colour;
      pen.beginPath();
      for (const [x, y] of state.marked.map(corner)) pen.moveTo(x - side, y), pen.lineTo(x, y), pen.lineTo(x, y + side);
      pen.fill();
    }
    for (const [colour, line] of [[paper, 4], [ink, 2]]) { // off: crossed out
      Object.assign(pen, { strokeStyle: colour, lineWidth: line });
      pen.beginPath();
      for (const one of state.off) {
        const { layer, head } = headNamed(one), row = data.layers.indexOf(aboutLayer(layer));
        const x = LEFT + (head + 0.5) * WIDE - 0.5, y = TOP + (row + 0.5) * HIGH - 0.5;
        for (const turn of [-3, 3]) pen.moveTo(x - 3, y - turn), pen.lineTo(x + 3, y + turn);
      }
      pen.stroke();
    }
    heat.setAttribute("aria-label", `${label} of ${data.heads} heads in ${rows} layers, from ${low.toFixed(2)} to ${high.toFixed(2)}`);
  }

  return { draw, element };
}
