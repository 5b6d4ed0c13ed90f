// One pair after another. The next one is fetched while this one is read; a verdict waits in the browser until the
// server has stored it, also when the server is away or the page is closed.
import { CHOICES, fill, fillRaw, gestures, shortcut, writing } from "./answers.js";
import { call, strange, visitor } from "./asking.js";
import { outbox } from "./outbox.js";

const at = (id) => document.getElementById(id);
const SAID = { left: "Left is better", right: "Right is better", tie: "Tie", both_bad: "Both bad", skip: "Skipped" };
const FINAL = [400, 404, 409, 413, 422];  // from the server itself: this verdict is refused, and would be again
const RETRY = 2000;
const waiting = outbox(visitor);
const screen = `manners-screen ${visitor}`;  // what this tab shows, for when it is loaded anew

let pair = null;
const ahead = [];  // promises of pairs, the next one first
let sending = null;
let raw = false;

const gesture = gestures((on) => {
  for (const button of document.querySelectorAll("[data-choice]")) button.setAttribute("aria-disabled", String(!on || !judges(button.dataset.choice)));
});
const judges = (choice) => at("reveal").hidden || choice === "skip";  // nobody judges what is blurred

const post = (path, body = {}) => call(`label/${path}`, body);
const signedOut = (error) => (error.status === 401 ? `${error.message[0].toUpperCase()}${error.message.slice(1)}. What you wrote stays here.` : "");

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// What waits for the server is said beside what else goes wrong, never in place of it.
const notices = new Map();
function notice(text, about = "") {
  notices.set(about, text);
  at("notice").textContent = [...notices.values()].filter(Boolean).join(" ");
  at("notice").hidden = !at("notice").textContent;
}

async function flush() {
  for (let verdicts = waiting.all(); verdicts.length; verdicts = waiting.all()) {
    try {
      const taken = await post("verdict", verdicts[0]);
      if (taken?.view !== verdicts[0].view) throw strange();
      notice("", "outbox");
    } catch (error) {
      if (!error.ours || !FINAL.includes(error.status)) {
        const count = `${verdicts.length} verdict${verdicts.length > 1 ? "s" : ""}`;
        notice(signedOut(error) ? `${signedOut(error)} ${count} ${verdicts.length > 1 ? "wait" : "waits"} in this browser until then.`
          : `${count} not stored yet: ${error.message}. Trying again.`, "outbox");
        await wait(RETRY);
        continue;
      }
      notice(`One verdict was refused: ${error.message}.`, "outbox");
    }
    waiting.remove(verdicts[0].view);
  }
}

// Nothing may wait between the last look into the outbox and `sending = null`: a verdict that came then would stay there.
function send() {
  sending ??= flush().finally(() => { sending = null; progress(); });
  return sending;
}

async function progress() {
  try {
    const day = Math.floor((Date.now() - new Date().setHours(0, 0, 0, 0)) / 1000);  // since midnight where this person is
    const far = await call(`label/progress?day=${day}`);
    at("undo").hidden = !far.total;
    at("progress").textContent = `${far.today} today, ${far.total} in all, ${far.left} left`;
  } catch { /* the outbox says that the server is away */ }
}

function fetchPair(path = "next", body = {}) {
  return post(path, body).then((said) => { notice("", "next"); return said.pair; }).catch(async (error) => {
    notice(signedOut(error) ? (waiting.all().length ? "" : signedOut(error)) : `No new pair: ${error.message}. Trying again.`, "next");
    await wait(RETRY);
    return fetchPair(path, body);
  });
}

// What this tab showed before it was loaded anew comes again, with what was said about it.
async function begin() {
  const { view, given } = JSON.parse(sessionStorage.getItem(screen) ?? "{}");
  const again = await fetchPair("begin", { view });
  return again ? { ...again, given } : fetchPair();
}

function turn(role, html) {
  const whole = document.createElement("div");
  whole.className = "turn";
  const title = document.createElement("h3");
  title.textContent = { user: "Asked", assistant: "Answered", system: "Instruction" }[role];
  const text = document.createElement("div");
  text.className = "text";
  fill(text, html);
  whole.append(title, text);
  return whole;
}

function show(shown) {
  pair = shown;
  at("pair").hidden = !pair;
  at("empty").hidden = Boolean(pair);
  for (const id of ["raw", "report"]) at(id).hidden = !pair;
  if (!pair) { gesture.show(null); keep(); return; }
  at("prompt").replaceChildren(...pair.turns.map(({ role, html }) => turn(role, html)));
  draw();
  for (const id of ["left", "right"]) at(id).scrollTop = 0;
  say(pair.given);
  keep();
  blur(pair.sensitive);
  gesture.show(pair);
  toQuestion();
}

// Of a long dialogue the last question is what is answered: it is where reading begins, in its pane or on the page.
function toQuestion() {
  const question = at("prompt").lastElementChild;
  at("prompt").scrollTop = question.offsetTop - at("prompt").offsetTop;
  window.scrollTo(0, 0);
  const { top } = question.getBoundingClientRect();
  if (pair.turns.length > 1 && top > window.innerHeight / 2) window.scrollTo(0, top - 8);
}

function draw() {
  for (const side of ["left", "right"]) {
    fill(at(side), pair[side]);
    if (raw) fillRaw(at(side), pair.raw[side]);
  }
  at("raw").setAttribute("aria-pressed", String(raw));
}

// What is said beside the choice is kept with its pair while it is being said.
const beside = () => {
  const checked = [...document.querySelectorAll(".more input:checked")];
  const strength = checked.find((input) => input.name === "strength")?.value;
  return {
    strength: strength ? Number(strength) : null,
    reasons: checked.filter((input) => input.name === "reason").map((input) => input.value),
    comment: at("comment").value,
  };
};
function keep() {
  try {
    if (pair) sessionStorage.setItem(screen, JSON.stringify({ view: pair.view, given: beside() }));
    else sessionStorage.removeItem(screen);
  } catch { /* this browser keeps nothing */ }
}

function say(given) {
  for (const input of document.querySelectorAll(".more input")) {
    input.checked = Boolean(given) && (input.name === "strength" ? Number(input.value) === given.strength : given.reasons.includes(input.value));
  }
  at("comment").value = given?.comment ?? "";
}

function blur(on) { at("pair").classList.toggle("blurred", on); at("reveal").hidden = !on; }

function reveal() {
  if (!pair || at("reveal").hidden) return;
  blur(false);
  notice("");
  gesture.show(pair);
}

// One after another brings something else to the screen. Nothing is judged or reported meanwhile: the pair is null.
let moving = null;

function move(act) { moving ??= act().finally(() => { moving = null; }); return moving; }
function forward(first = fetchPair) { return move(() => step(first)); }

async function step(first = fetchPair) {
  show(await (ahead.shift() ?? first()));
  if (pair && !ahead.length) ahead.push(fetchPair());
}

async function idle() {
  for (;;) {
    await wait(5000);
    if (!pair && !moving) await forward();
  }
}

async function choose(choice, event) {
  if (!pair) return;
  if (!judges(choice)) { notice("Show the answers first (v), skip the pair or report it."); return; }
  if (!gesture.means(event)) return;
  const verdict = { view: pair.view, choice, ...beside(), seconds: gesture.seconds() };
  judged = pair.view;
  pair = null;
  keep();
  notice(waiting.add(verdict) ? "" : "This browser keeps nothing: leave the page open until all is stored.");
  at("said").textContent = `${SAID[choice]}. Next pair.`;
  send();
  await forward();
}

let undoing = false;
let judged = null;  // what this page judged last: another page, or a verdict that comes meanwhile, is not what is meant
async function undo(event) {
  if (undoing || event?.detail > 1) return;  // a gesture takes one verdict back
  undoing = true;
  const view = judged;
  judged = null;
  try {
    await send();
    while (moving) await moving;
    if (reporting) throw new Error("the pair on the screen is being reported");
    await move(() => takeBack(view));
    await progress();
  } catch (error) {
    judged ??= view;
    notice(`Nothing was taken back: ${error.message}`);
  } finally { undoing = false; }
}

// What was on the screen comes next, with what was being said about it.
async function takeBack(view) {
  const before = pair;
  pair = null;
  try {
    const { pair: again } = await post("undo", { view });
    if (!again) { notice("Nothing is taken back: there is no verdict of yours, or its pair was reported or deleted since."); return; }
    if (before) ahead.unshift(Promise.resolve({ ...before, given: beside() }));
    show(again);
    at("said").textContent = "Taken back. Judge this pair again.";
  } finally {
    pair ??= before;
    keep();
  }
}

function guidelines(open = at("guidelines").hidden) {
  const drawer = at("guidelines");
  drawer.hidden = !open;
  at("help").setAttribute("aria-expanded", String(open));
  (open ? drawer : at("help")).focus();
}

function howMuch() {
  const all = [...document.querySelectorAll("[name=strength]")];
  const next = all.findIndex((input) => input.checked) + 1;  // after the last one comes none
  for (const input of all) input.checked = input === all[next];
  keep();
  at("more").open = true;
}

function more(id) {
  at("more").open = true;
  (at(id) ?? document.querySelector(`.more [name=${id}]`)).focus();
}

let reporting = false;  // whether somebody is writing a report of the pair on the screen: nothing else comes there
async function report() {
  reporting = false;
  if (at("reporting").returnValue !== "report" || !pair) return;
  const reported = pair;
  pair = null;
  await move(() => flag(reported));
}

async function flag(reported) {
  const reason = at("reporting").querySelector("input:checked").value;
  try {
    await post("flag", { view: reported.view, reason, note: at("note").value });
  } catch (error) {
    pair = reported;
    keep();
    notice(`Not reported: ${error.message}`);
    return;
  }
  at("said").textContent = "Reported. Next pair.";
  at("note").value = "";
  await step();
}

const KEYS = {
  u: undo, r: () => { if (pair) { raw = !raw; draw(); } }, v: reveal, h: howMuch, y: () => more("reason"), c: () => more("comment"),
  "?": () => guidelines(),
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (!at("guidelines").hidden) guidelines(false);
    else if (writing(event)) event.target.blur();  // back from the comment to the keys
    return;
  }
  if (event.repeat || writing(event) || at("reporting").open) return;
  const key = shortcut(event);
  if (CHOICES[key]) { event.preventDefault(); choose(CHOICES[key], event); }
  else if (KEYS[key]) { event.preventDefault(); KEYS[key](); }
});
document.addEventListener("click", (event) => {  // the first click beside the guidelines closes them, and no more
  if (at("guidelines").hidden || event.target.closest("#guidelines, #help")) return;
  event.stopPropagation();
  event.preventDefault();
  guidelines(false);
}, true);
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", (event) => choose(button.dataset.choice, event));
}
at("undo").addEventListener("click", undo);
at("help").addEventListener("click", () => guidelines());
at("close").addEventListener("click", () => guidelines(false));
at("raw").addEventListener("click", () => KEYS.r());
at("report").addEventListener("click", () => {
  if (!pair) return;
  reporting = true;
  at("reporting").returnValue = "";
  at("reporting").showModal();
});
at("reporting").addEventListener("close", report);
at("reveal").addEventListener("click", reveal);
at("more").open = matchMedia("(min-width: 701px)").matches;

for (const what of ["input", "change"]) document.querySelector(".more").addEventListener(what, keep);

await send();
await forward(begin);
idle();
