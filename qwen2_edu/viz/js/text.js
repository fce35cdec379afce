// The text, and the steps of generation.

function makeText(shared) {
  const { data, T, state, change, chosenToken, chooseToken, other, cell } = shared;
  const list = h("div", { role: "listbox", "aria-label": "Tokens", class: "qx-text", dir: data.rtl ? "rtl" : "ltr" });
  const spans = data.tokens.map(({ text, special }, i) =>
    h("span", { role: "option", "data-token": i, class: special ? "qx-special" : "", dir: "auto" }, text));
  spans.forEach((span, i) => list.append(span, ...(data.tokens[i].text.endsWith("↵") ? [h("br")] : [])));
  const choose = (option, otherEnd) => (otherEnd ? change({ [other()]: Number(option.dataset.token) }) : chooseToken(Number(option.dataset.token)));
  shadowed(list);
  walkable(list, (option, event) => choose(option, event?.shiftKey), data.rtl);
  list.addEventListener("mousedown", (event) => event.shiftKey && event.preventDefault()); // no selection of text
  list.addEventListener("keydown", (event) => {
    if (event.key === "k" && event.target.dataset.token) choose(event.target, true), event.stopPropagation();
  });
  const group = unique();
  const turn = (direction) => change({ direction, query: chosenToken(), key: chosenToken() });
  const radio = (value, label) => h("label", {}, h("input", { type: "radio", name: group, value,
    checked: value === state.direction, onchange: () => turn(value) }), ` ${label}`);
  const asks = h("fieldset", { class: "qx-tools" }, h("legend", {}, "Token"), radio("query", "looks at"), radio("key", "is seen by"));

  function draw() {
    const one = chosenToken(), asQuery = state.direction === "query";
    const written = state.step ? data.steps[state.step - 1].position : T;
    shared.root.classList.toggle("qx-seen-by", !asQuery);
    asks.querySelector(`input[value="${state.direction}"]`).checked = true;
    spans.forEach((span, i) => {
      const { id, note, text } = data.tokens[i];
      const [weight, why] = cell(state, ...(asQuery ? [one, i] : [i, one]));
      const how = i === one ? "chosen" : why ? REASONS[why] : `weight ${digits(weight)}`;
      span.style.setProperty("--part", why ? 0 : Math.sqrt(weight));
      span.classList.toggle("qx-end", i === state[other()] && i !== one);
      span.classList.toggle("qx-unwritten", i > written + 1);
      span.classList.toggle("qx-next", i === written + 1);
      span.title = `${i}, id ${id}${note && `, ${note}`}: ${how}`;
      span.setAttribute("aria-label", `Token ${i} ${text}, ${how}`);
    });
    const { offsetTop: top, offsetHeight: height } = mark(list, (span) => Number(span.dataset.token) === one);
    const hidden = top < list.scrollTop || top + height > list.scrollTop + list.clientHeight;
    if (hidden) list.scrollTop = top - list.clientHeight / 2; // the box alone, not the page
  }

  return { draw, asks, list };
}

/** The steps of generation: a scrubber and its sentence beside the text, and what else could have come. */
function makeSteps({ data, state, change, name }) {
  if (!data.steps.length) return { draw: () => {}, element: null, scrubber: "", told: "" };
  const range = slider("Step of generation", data.steps.length, (value) => go(value));
  const back = button("◀", "Step back", () => go(state.step - 1));
  const on = button("▶", "Step on", () => go(state.step + 1));
  const told = h("output", { class: "qx-step" }), chances = h("ol", { class: "qx-bars" }), title = h("h3", {});
  const go = (step) => {
    if (step < 1 || step > data.steps.length) return;
    change({ direction: "query", query: data.steps[step - 1].position, key: null });
  };
  function draw() {
    const step = data.steps[state.step - 1], part = `Token ${name(state.query)} is part of the prompt`;
    Object.assign(range, { min: step ? 1 : 0, value: state.step }); // 0 = in the prompt: one to the right is step 1
    back.setAttribute("aria-disabled", state.step <= 1); // not `disabled`: that would drop the focus
    on.setAttribute("aria-disabled", state.step === data.steps.length);
    if (!step) {
      told.textContent = part;
      range.setAttribute("aria-valuetext", part);
      title.textContent = `${part}; ▶ goes to the first step`;
      chances.replaceChildren();
      return;
    }
    const how = state.step === 1 ? "the last row of the prompt" : "one row, decoded with the cache";
    told.textContent = `Step ${state.step} of ${data.steps.length}: after token ${name(step.position)} `
      + `came “${step.text}”, probability ${chance(step.probability)}`;
    range.setAttribute("aria-valuetext", told.textContent);
    title.textContent = `Likeliest after token ${name(step.position)}, ${how}`;
    chances.replaceChildren(...step.alternatives.map(({ text, id, probability }) =>
      bar(`“${text}”`, probability, chance(probability), id === step.id)));
  }
  return { draw, told, scrubber: h("div", { class: "qx-scrubber", role: "group", "aria-label": "Steps of generation" }, h("span", { "aria-hidden": true }, "Step"), back, range, on),
    element: h("div", { class: "qx-steps" }, title, chances, h("p", { class: "qx-note" }, `${data.check}. Probabilities are the model's, before temperature and cuts.`)) };
}
