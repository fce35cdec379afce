// One map minus another: a head that is kept, or the same in the explorer beside this one.

/** What can be taken away, and what is. Python tells of the explorer beside this one in `beside`:
 * its side, the name of this one, and why the two do not go together, if so. */
function differing({ source, data, T, state, layers, ready, cell, reasons, members, change }) {
  const beside = () => source.get("beside") ?? {};
  const fromBeside = (turn) => {
    const its = { data: { ...data, first: beside().first }, layers: new Map(), ready: {} };
    const load = (name) => source.load(`beside ${turn} ${name}`);
    return { turn, its, load, read: reading({ source, T, state, ...its }) };
  };
  let other = null;
  const told = h("p", { class: "qx-notice qx-why", role: "status" });
  const choice = select("Minus", [], (value) => change({ minus: value }));
  const element = h("label", {}, "Minus ", choice), where = h("b", { class: "qx-where" });

  const title = ({ layer, head }) => `layer ${layer}, head ${head}`;

  /** What is taken away from the chosen map, or nothing: {name, of: what tells it from others, cell(q, k), reasons}. */
  async function loadMinus() {
    const kept = state.pinned.find((one) => nameOf(one) === state.minus);
    if (kept) return { name: title(kept), of: title(kept), cell: (q, k) => cell(kept, q, k), reasons: () => reasons(kept) };
    const { turn, side, why } = beside();
    if (state.minus !== "beside" || !side || why) return null;
    if (other?.turn !== turn) other = fromBeside(turn);
    const { its, load, read } = other, { layer, head } = state, at = { layer, head };
    its.ready.norms ??= new Float32Array((await load("norms")).slice().buffer);
    for (const { layer: index } of [at, ...members(at)]) {
      if (!its.layers.has(index)) its.layers.set(index, await load(`layer ${index}`));
    }
    return { name: `the ${side} explorer`, of: turn, cell: (q, k) => read.cell(at, q, k), reasons: () => read.reasons(at) };
  }

  function draw() {
    const { side, name, why } = beside();
    where.textContent = side ? `${{ left: "Right", right: "Left" }[side]}: ${clip(name, 60)}` : "";
    const options = [["", "nothing"], ...state.pinned.map((one) => [nameOf(one), title(one)]), ...(side ? [["beside", `the ${side} explorer`]] : [])];
    if (choice.dataset.of !== options.join()) {
      choice.replaceChildren(...options.map(([value, text]) => h("option", { value }, text)));
      choice.dataset.of = options.join();
    }
    element.hidden = options.length === 1;
    choice.value = options.some(([value]) => value === state.minus) ? state.minus : "";
    told.textContent = choice.value === "beside" && why ? `No difference can be drawn: ${why}` : "";
  }

  /** Colours of differences from −1 to 1: the paper's own for 0, so that they hold in light and dark. */
  function diverging() {
    const read = (name) => {
      element.style.color = `var(${name})`;
      const found = getComputedStyle(element).color.match(/[\d.]+/g).slice(0, 3).map(Number);
      element.style.color = "";
      return found;
    };
    const [less, zero, more] = ["--less", "--paper", "--more"].map(read);
    const words = Uint32Array.from({ length: 511 }, (_, i) => {
      const part = Math.abs(i - 255) / 255, end = i < 255 ? less : more;
      const [red, green, blue] = zero.map((from, channel) => Math.round(from + part * (end[channel] - from)));
      return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    });
    return { name: [less, zero, more].join(), words, gradient: `linear-gradient(90deg, rgb(${less}), rgb(${zero}), rgb(${more}))` };
  }
  const place = (gap) => 255 + Math.sign(gap) * Math.round(255 * Math.sqrt(Math.abs(gap))); // of a difference among them

  /** The scale of a legend. */
  function scale() {
    const { gradient } = diverging(), { name } = ready.minus;
    return [h("div", { class: "qx-scale", role: "img", "aria-label": "Colours of the differences from −1 to 1" },
      h("div", { style: `background: ${gradient}` }),
      ...["−1", "−0.25", "0", "+0.25", "+1"].map((w) => h("span", { style: `left: ${(100 * place(Number(w.replace("−", "-")))) / 510}%` }, w))),
    h("span", {}, `− more weight in ${name}, + more here`)];
  }
  const elsewhere = () => ready.palette && source.get("data") === data && change({}); // the other explorer reads another text
  source.listen("beside", elsewhere);
  return { loadMinus, minusChoice: { draw, element, told, where }, diverging, place, scale };
}
