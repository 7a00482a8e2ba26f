// The panel of one round: its tree, its plan, what was expected of it and what it came to.

const PARTS = { plan: "--arm-3", draft: "--arm-1", verify: "--arm-0", commit: "--arm-2", other: "--arm-7" };

function unplanned(place) {
  if (place === null) return [element("p", { class: "note" }, "No rounds were recorded.")];
  return [element("h2", {}, "In no round"),
    element("p", { class: "panel-line" }, "This token stood before the first round: it came with the prompt's own forward.")];
}

function panelOf(number) {
  const entry = current();
  const round = entry.generation.rounds[number];
  const mine = round.rows[entry.place];
  return [
    titleOf(number),
    element("p", { class: "panel-line" }, summaryOf(mine)),
    element("h3", {}, "Tree"), treeOf(mine), treeNote(round, mine),
    element("div", { class: "beside" },
      element("section", {}, element("h3", {}, "Plan"), planTable(round, mine)),
      element("section", {}, element("h3", {}, "Predicted and real"), timeTable(round, mine))),
    ...partsOf(round),
    element("h3", {}, "What the target held most probable on the path"), alternativesTable(mine),
  ];
}

function titleOf(number) {
  const numbers = roundsOf(current());
  const turn = (label, words, by) => {
    const button = element("button", { type: "button", "aria-label": words }, label);
    button.disabled = numbers[numbers.indexOf(number) + by] === undefined;
    button.addEventListener("click", () => step(by));
    return button;
  };
  return element("div", { class: "title" },
    element("h2", {}, `Round ${number + 1} `, element("small", {}, `of ${current().generation.rounds.length}`)),
    turn("\u2190", "Previous round", -1), turn("\u2192", "Next round", 1));
}

function summaryOf(mine) {
  const proposed = mine.nodes.length - 1;
  if (!proposed) return `Nothing was proposed; the target gave ${plural(mine.tokens.length, "token")}.`;
  const cut = mine.cut ? ` ${plural(mine.cut, "token")} more cut by a stop, a grammar or the length.` : "";
  return `${mine.accepted} of ${plural(proposed, "proposed token")} accepted, ${plural(mine.tokens.length, "token")} gained.${cut}`;
}

function treeNote(round, mine) {
  if (mine.nodes.length === 1) return element("p", { class: "note" }, "The root alone: plain decoding.");
  const draft = round.has_draft ? "d: the draft's probability of the token behind its parent"
    : "d: no probability (looked up, not drafted by a model)";
  const target = round.sampled ? "the target's law, after every processor" : "softmax of the target's logits, before processors";
  return element("p", { class: "note" }, `${draft}; t: the target's (${target}). Dashed: the target's own token.`);
}

function planTable(round, mine) {
  const tree = round.size ? `${plural(round.size, "draft token")}, depth ${round.depth}` : "none";
  const proposed = mine.nodes.length - 1;
  return tableOf([
    ["Arm", round.arm, { id: "arm" }],
    ["Tree planned", tree + (proposed === round.size ? "" : ` (this row: ${proposed})`), { id: "planned" }],
    ["Why", round.reason || "the controller gives no reason", { id: "reason" }],
    ["Context", plural(round.context, "cached token")],
  ]);
}

function tableOf(lines) {
  return element("table", {}, ...lines.map(([label, value, attributes = {}]) =>
    element("tr", {}, element("th", { scope: "row" }, label), element("td", attributes, value))));
}

function timeTable(round, mine) {
  const counts = Object.values(round.rows).map((row) => row.tokens.length);
  const mean = counts.reduce((sum, count) => sum + count, 0) / counts.length;
  const tokens = counts.length > 1 ? `${mine.tokens.length} (mean of ${counts.length} rows ${mean.toFixed(2)})` : String(mine.tokens.length);
  const head = element("tr", {}, ...["", "predicted", "real"].map((name) => element("th", { scope: "col" }, name)));
  const line = (label, predicted, real, id) => element("tr", {}, element("th", { scope: "row" }, label),
    element("td", { id: `predicted-${id}` }, predicted), element("td", { id: `real-${id}` }, real));
  const expected = round.predicted_tokens === null ? "\u2013" : round.predicted_tokens.toFixed(2);
  return element("table", { id: "times" }, head,
    line("Tokens a row", expected, tokens, "tokens"),
    line("Time of the round", time(round.predicted_seconds), time(work(round)), "seconds"));
}

function partsOf(round) { // real time by part, with the predicted time on the same scale
  const total = Object.values(round.seconds).reduce((sum, seconds) => sum + seconds, 0);
  const scale = Math.max(total, round.predicted_seconds ?? 0) || 1;
  const bars = Object.entries(PARTS).map(([part, colour]) => element("span",
    { style: `width: ${(100 * round.seconds[part]) / scale}%; background: var(${colour})`, title: `${part} ${time(round.seconds[part])}` }));
  const items = Object.entries(PARTS).map(([part, colour]) =>
    element("li", {}, swatch(`var(${colour})`), `${part} ${time(round.seconds[part])}`));
  const made = [element("div", { class: "scale" }, ...bars), element("ul", { id: "parts" }, ...items)];
  if (round.predicted_seconds !== null) {
    const predicted = element("span", { style: `width: ${(100 * round.predicted_seconds) / scale}%; background: var(--faint)`, title: "predicted" });
    made.unshift(element("div", { class: "scale" }, predicted));
  }
  const words = made.length > 2 ? "Above: predicted, without planning; below: real, by part." : "Real time, by part.";
  return [...made, element("p", { class: "note" }, words)];
}

function alternativesTable(mine) {
  const lines = mine.alternatives.map((found, place) => {
    const cells = found.map(([token, probability]) => element("td", { class: token === mine.tokens[place] ? "chosen" : null },
      element("span", { class: "meter", style: `width: ${(3 * probability).toFixed(2)}rem` }),
      element("code", {}, short(shown(token), 14)), ` ${odds(probability)}`));
    const behind = mine.nodes[mine.path[place]].token;
    return element("tr", {}, element("th", { scope: "row" }, "behind ", element("code", {}, short(shown(behind), 14))), ...cells);
  });
  return element("table", { id: "alternatives" }, ...lines);
}
