// Heads off: what do they cause?

/** Which heads are off, and how to switch some. live: whether there is a model to ask. */
function switching({ state, live, change }) {
  const isOff = ({ layer, head }) => state.off.includes(`${layer}.${head}`);

  /** Switch heads off; on again, if all of them are off. */
  function switchHeads(heads) {
    if (!live) return;
    const names = heads.map(({ layer, head }) => `${layer}.${head}`), others = state.off.filter((one) => !names.includes(one));
    change({ off: heads.every(isOff) ? others : [...others, ...names] });
  }
  return { isOff, switchHeads };
}

function makeCause({ source, data, state, live, change, name, keyHead, isOff, switchHeads }) {
  if (!live) return { draw: () => {}, element: null };
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
