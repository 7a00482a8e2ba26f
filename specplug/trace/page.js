// Everything that comes from the recording reaches the document as text: element() sets textContent, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const ORIGINS = { accepted: "draft, accepted", bonus: "bonus: the target's own", plain: "plain: nothing was proposed" };

const rows = data.generations.flatMap((generation, g) =>
  generation.rows.map((row, r) => ({ generation, row, place: String(r), name: nameOf(g, row) })));
const chosen = { row: 0, round: null, token: null }; // round: a number in the generation; token: a place in the row

// --- small helpers

function byId(id) { return document.getElementById(id); }

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function nameOf(g, row) {
  return data.generations.length > 1 ? `${row.name} of call ${g + 1}` : row.name;
}

function shown(token) { // a token's text with its white space made visible
  const text = data.texts[token] ?? "";
  if (text === "" || text === "\ufffd") return `#${token}`;
  return text.replaceAll(" ", "\u00b7").replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5").replaceAll("\r", "\u240d");
}

function short(text, most) { return [...text].length > most ? [...text].slice(0, most - 1).join("") + "\u2026" : text; }

function odds(probability) {
  if (probability === null || probability === undefined) return "\u2013";
  if (probability > 0 && probability < 0.005) return "<.01";
  return probability > 0.995 ? (probability === 1 ? "1" : ">.99") : probability.toFixed(2).slice(1);
}

function time(seconds) {
  if (seconds === null) return "\u2013";
  if (seconds >= 0.9995) return `${seconds.toPrecision(3)} s`;
  return seconds < 0.0009995 ? `${(seconds * 1e6).toFixed(0)} \u00b5s` : `${(seconds * 1e3).toPrecision(3)} ms`;
}

function plural(count, noun) { return `${count} ${noun}${count === 1 ? "" : "s"}`; }

function swatch(colour) { return element("span", { class: "swatch", style: `background: ${colour}` }); }

function current() { return rows[chosen.row]; }

function roundsOf(entry) { // the numbers of the rounds in which a row took part
  return entry.generation.rounds.flatMap((round, number) => (entry.place in round.rows ? [number] : []));
}

function armColour(entry, arm) { return `var(--arm-${Math.max(0, entry.generation.arms.indexOf(arm)) % 8})`; }

function work(round) { // seconds without planning: what was predicted
  return Object.entries(round.seconds).reduce((sum, [part, seconds]) => sum + (part === "plan" ? 0 : seconds), 0);
}

// --- header

function drawHeader() {
  const first = data.generations[0];
  const totals = data.totals;
  const facts = { ...data.about };
  if (first) {
    facts.Model ??= first.model;
    facts.Controller ??= first.controller;
    facts.Device ??= `${first.device}, ${first.dtype}`;
  }
  facts.Tokens = String(totals.tokens);
  facts.Rounds = String(totals.rounds);
  facts["Accepted length"] = `${totals.accepted_length.toFixed(2)} tokens a round`;
  facts.Speed = `${totals.tokens_per_second.toFixed(0)} tokens/s while recorded`;
  for (const [label, value] of Object.entries(facts)) {
    byId("about").append(element("div", {}, element("dt", {}, label), element("dd", {}, value)));
  }
  const shares = [];
  for (const [origin, meaning] of Object.entries(ORIGINS)) {
    const share = totals.tokens ? totals[origin] / totals.tokens : 0;
    byId("shares").append(element("span", { class: origin, style: `flex: ${totals[origin]}` }));
    byId("legend").append(element("li", {}, element("span", { class: `swatch ${origin}` }),
      `${meaning} \u2013 ${totals[origin]} (${Math.round(100 * share)} %)`));
    shares.push(`${origin} ${Math.round(100 * share)} %`);
  }
  byId("shares").setAttribute("aria-label", shares.join(", "));
}

function drawChooser() {
  byId("chooser").hidden = rows.length < 2;
  rows.forEach((entry, place) => byId("row").append(element("option", { value: place }, entry.name)));
  byId("row").addEventListener("change", (event) => { showRow(Number(event.target.value)); remember(); });
}

// --- one row: its rounds and its text

function showRow(place) {
  Object.assign(chosen, { row: place, round: null, token: null });
  byId("row").value = String(place);
  drawStrip();
  drawText();
  const began = roundsOf(current()).find((number) => current().generation.rounds[number].rows[current().place].accepted);
  showRound(began ?? roundsOf(current())[0] ?? null);
  const first = byId("flow").querySelector(".token");
  byId("flow").scrollTop = first.offsetTop - byId("flow").clientHeight / 3; // past a long prompt
}

function drawStrip() {
  const entry = current();
  const numbers = roundsOf(entry);
  const most = Math.max(1, ...numbers.map((number) => entry.generation.rounds[number].rows[entry.place].tokens.length));
  byId("strip").replaceChildren(...numbers.map((number) => {
    const round = entry.generation.rounds[number];
    const count = round.rows[entry.place].tokens.length;
    const words = `Round ${number + 1}: ${plural(count, "token")}, ${round.arm}`;
    const fill = element("span", { style: `height: ${(100 * count) / most}%; background: ${armColour(entry, round.arm)}` });
    return element("button", { class: "bar", type: "button", "data-round": number, title: words, "aria-label": words }, fill);
  }));
  const used = new Set(numbers.map((number) => entry.generation.rounds[number].arm));
  byId("arms").replaceChildren(...[...used].map((arm) => element("li", {}, swatch(armColour(entry, arm)), arm)));
}

function drawText() {
  const { row } = current();
  byId("flow").replaceChildren(element("span", { class: "prompt" }, row.prompt),
    ...row.tokens.map((token, place) => tokenElement(token, place)));
}

function tokenElement(token, place) {
  const blank = token.text === "" ? "\u25ab" : token.text.includes("\n") ? "\u21b5" : null;
  const where = token.round === null ? "came with the prompt" : `round ${token.round + 1}`;
  return element("span", {
    class: `token ${token.origin}`, role: "button", tabindex: place ? "-1" : "0", "data-place": place, "data-mark": blank,
    title: `${ORIGINS[token.origin]}; ${where}`,
  }, token.text);
}

// --- choosing

function showRound(number, place = null) {
  const { row } = current();
  chosen.round = number;
  chosen.token = place;
  for (const bar of byId("strip").children) mark(bar, number !== null && Number(bar.dataset.round) === number);
  for (const token of byId("flow").querySelectorAll(".token")) {
    const own = Number(token.dataset.place);
    token.classList.toggle("mates", number !== null && row.tokens[own].round === number);
    token.tabIndex = own === (place ?? firstOf(number)) ? 0 : -1;
    mark(token, own === place);
  }
  byId("panel").replaceChildren(...(number === null ? unplanned(place) : panelOf(number)));
}

function mark(made, isIt) {
  if (isIt) made.setAttribute("aria-current", "true"); else made.removeAttribute("aria-current");
}

function firstOf(number) { return Math.max(0, current().row.tokens.findIndex((token) => token.round === number)); }

function pickToken(place) {
  showRound(current().row.tokens[place].round, place);
  remember();
  const token = byId("flow").querySelector(`[data-place="${place}"]`);
  token.focus({ preventScroll: true });
  token.scrollIntoView({ block: "nearest" });
}

function pickRound(number) {
  showRound(number);
  remember();
  byId("strip").querySelector(`[data-round="${number}"]`).scrollIntoView({ block: "nearest", inline: "nearest" });
  byId("flow").querySelector(`[data-place="${firstOf(number)}"]`).scrollIntoView({ block: "nearest" });
}

function step(by) { // to another round
  const numbers = roundsOf(current());
  const next = numbers[chosen.round === null ? (by > 0 ? 0 : -1) : numbers.indexOf(chosen.round) + by];
  if (next !== undefined) pickRound(next);
}

function stepToken(by) {
  const place = (chosen.token ?? firstOf(chosen.round)) + by;
  if (place >= 0 && place < current().row.tokens.length) pickToken(place);
}

function remember() { // where we are, in the address: #round-7, and #row-2/round-7 where there are several rows
  const row = rows.length > 1 ? `row-${chosen.row + 1}` : "";
  const round = chosen.round === null ? "" : `round-${chosen.round + 1}`;
  history.replaceState(null, "", `#${[row, round].filter(Boolean).join("/")}`);
}

function follow() { // the address
  const found = /^#(?:row-(\d+)\/?)?(?:round-(\d+))?$/.exec(location.hash);
  if (!found) return;
  const place = Number(found[1] ?? 1) - 1;
  if (place !== chosen.row && rows[place]) showRow(place);
  const number = Number(found[2]) - 1;
  if (roundsOf(current()).includes(number)) pickRound(number);
}

// --- what is clicked and typed

function start() {
  drawHeader();
  drawChooser();
  if (!rows.length) { byId("panel").replaceChildren(...unplanned(null)); return; }
  byId("flow").addEventListener("click", (event) => {
    const token = event.target.closest(".token");
    if (token) pickToken(Number(token.dataset.place));
  });
  byId("strip").addEventListener("click", (event) => {
    const bar = event.target.closest(".bar");
    if (bar) pickRound(Number(bar.dataset.round));
  });
  document.addEventListener("keydown", typed);
  window.addEventListener("hashchange", follow);
  showRow(0);
  follow();
}

function typed(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("select, .scroll")) return;
  const inText = event.target.closest("#flow");
  const actions = { ArrowRight: () => step(1), ArrowLeft: () => step(-1) };
  if (inText) Object.assign(actions, { ArrowDown: () => stepToken(1), ArrowUp: () => stepToken(-1) });
  const token = event.target.closest(".token");
  if (token) actions.Enter = actions[" "] = () => pickToken(Number(token.dataset.place));
  const action = actions[event.key];
  if (action) { event.preventDefault(); action(); }
}

start();
