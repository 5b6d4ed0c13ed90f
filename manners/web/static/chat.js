// A conversation. An answer is plain text while it is written, and rendered by the server once it is complete.
import { CHOICES, entered, fill, fillRaw, gestures, shortcut, unturned, writing } from "./answers.js";
import * as asking from "./asking.js";

const { visitor } = asking;
const at = (id) => document.getElementById(id);

let key = null;
let there = false;      // whether anything has been opened
let visit = 0;          // which opening of a conversation this is: the same one may be opened again
let length = 0;         // turns of the conversation that are stored
let asked = null;       // the two answers that wait for a verdict
let choosing = null;    // the storing of one, which a message waits for: it is an answer to what was chosen
let reading = null;     // ends the reading of an answer, which goes on being written, or the looking for it
let reported = null;
let raw = false;        // whether answers that wait are shown as written

const gesture = gestures((on) => {
  for (const one of document.querySelectorAll("[data-choice]")) one.setAttribute("aria-disabled", String(!on));
});

// What is being written belongs to its conversation, also when another one is opened or the page is closed.
const draft = () => `manners-draft ${visitor} ${key}`;
function keepDraft() {
  if (at("words").value) remember(draft(), at("words").value);
  else localStorage.removeItem(draft());
}

// Of a conversation that was deleted, here or elsewhere, nothing stays. "Anna" is not "Anna Lena": blanks are counted.
function forgetGone(names, there) {
  for (const [begin, blanks] of [[`manners-draft ${visitor} `, 0], [`manners-sent ${visitor} `, 1]]) {
    for (const name of names.filter((one) => one.startsWith(begin))) {
      const [which, ...more] = name.slice(begin.length).split(" ");
      if (more.length === blanks && !there.has(which)) localStorage.removeItem(name);
    }
  }
}

// What a browser has no room for is sent all the same, and would not outlast the page.
function remember(name, what) {
  try { localStorage.setItem(name, what); } catch { notice("This browser keeps nothing more: do not close this page while you write or wait.", "room"); }
}

// What was sent stays here until its answer is stored. Where the server ended before that, it is sent again, to the same
// place of the conversation, and gets the same answer. An entry each: another tab may have said something here too.
const TRIES = 3;
const sentIn = (which) => `manners-sent ${visitor} ${which}`;
const sent = {
  all() {
    const names = Object.keys(localStorage).filter((name) => name.startsWith(sentIn(key)));
    return names.map((name) => ({ ...JSON.parse(localStorage.getItem(name)), name })).sort((one, other) => one.at - other.at);
  },
  put({ name, ...what }) { remember(name, JSON.stringify(what)); },
  forget({ name }) { localStorage.removeItem(name); },
};

// A message that nobody answers goes back to where it was written, before what is being written now.
function giveBack(message) {
  const { text } = message;
  sent.forget(message);
  const now = at("words").value;
  at("words").value = now && now !== text ? `${text}\n\n${now}` : text;
  keepDraft();
}

// Nothing can be sent while an answer is read, or looked for.
function busy(how) {
  reading = how;
  at("send").hidden = Boolean(how);
  at("stop").hidden = !how || Boolean(how.looks);
}

const call = (path, body) => asking.call(`chat/${path}`, body);
const final = ({ ours, status }) => ours && status < 500 && status !== 429;  // it would be refused again

// Why nobody answers yet is said beside what else happens, and neither takes the other's place.
const notices = { said: "", model: "", list: "", room: "" };
function notice(text, about = "said") {
  if (notices[about] === text) return;  // a screen reader would say it again
  notices[about] = text;
  at("notice").textContent = Object.values(notices).filter(Boolean).join(" ");
}
const failing = (act) => async (...given) => { try { await act(...given); } catch (error) { notice(error.message); } };

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  return made;
}

function turn(role, html) {
  const made = element("div", `turn ${role}`);
  const text = element("div", "text");
  fill(text, html);
  made.append(text);
  return made;
}

function button(text, label, act) {
  const made = element("button", "quiet", text);
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.addEventListener("click", failing(act));
  return made;
}

function answered(html, response, thumb) {
  const made = turn("assistant", html);
  const after = element("div", "after");
  const thumbs = [1, -1].map((value) => {
    const one = button(value > 0 ? "Good" : "Bad", value > 0 ? "Good answer" : "Bad answer", async () => {
      const wanted = one.getAttribute("aria-pressed") === "true" ? 0 : value;
      await call("thumb", { response, value: wanted });
      for (const each of thumbs) each.setAttribute("aria-pressed", String(each === one && wanted !== 0));
    });
    one.setAttribute("aria-pressed", String(thumb === value));
    return one;
  });
  after.append(...thumbs, button("Report", "Report this answer", () => {
    reported = response;
    at("reporting").returnValue = "";
    at("reporting").showModal();
  }));
  made.append(after);
  return made;
}

async function list() {
  const before = Object.keys(localStorage);  // of what begins while they are asked for, in another tab, nothing is forgotten
  const { conversations } = await call("all");
  forgetGone(before, new Set(conversations.map((one) => one.key)));
  at("conversations").replaceChildren(...conversations.map((one) => {
    const item = element("li");
    const opener = element("button", "", unturned(one.title));
    if (one.key === key) opener.setAttribute("aria-current", "true");
    opener.addEventListener("click", failing(() => open(one.key)));
    item.append(opener);
    return item;
  }));
  return conversations;
}

function confirming(sure) {
  at("delete").dataset.sure = sure ? "yes" : "";
  at("delete").textContent = sure ? "Really delete it? Click again" : "Delete this conversation";
}

// The conversation that was open comes again.
const last = () => `manners-open ${visitor}`;
async function open(which) {
  if (key !== which) {  // nothing of the other one stays, and nothing is said into it
    visit += 1;
    choosing = null;
    reading?.abort();
    busy(null);
    at("say").hidden = true;
    at("turns").replaceChildren();
  }
  key = which;
  remember(last(), which ?? "");
  ask(null);
  confirming(false);
  const { turns, waiting, ongoing } = which ? await call(which) : { turns: [] };
  if (key !== which) return;  // another one was opened while this one was fetched
  there = true;
  reading?.abort();
  busy(null);
  length = turns.length;
  at("turns").replaceChildren(...turns.map((one) => (
    one.role === "user" ? turn("user", one.html) : answered(one.html, one.response, one.thumb))));
  if (waiting) {
    const theirs = panes(2);
    at("turns").lastChild.replaceWith(theirs);
    ask({ ...waiting, theirs });
  }
  notice("");
  at("consent").hidden = Boolean(key);
  at("say").hidden = !key;
  if (key) {
    at("words").value = localStorage.getItem(draft()) ?? "";
    toEnd();
    if (!waiting) at("words").focus();
  }
  const stored = ({ after, text }) => turns[after]?.text === text;
  sent.all().filter(stored).forEach(sent.forget);
  const left = sent.all();
  const message = ongoing
    ? left.find(({ text }) => text === ongoing) ?? { text: ongoing }
    : left.find(({ after, tries }) => after === length && tries < TRIES);
  if (ongoing) read(message, (signal) => asking.request(`chat/${which}/ongoing`, undefined, signal));
  else if (message) send(message);
  for (const one of left.reverse()) {
    if (one.name === message?.name) continue;
    giveBack(one);
    notice("Your last message was not answered: it is here again.");
  }
  await list();
}

// Ask which of two answers is better; null for no question.
function ask(question) {
  asked = question;
  gesture.show(asked);
  at("asking").hidden = !asked;
  if (asked) drawAnswers();
}

function drawAnswers() {
  asked.html.forEach((html, side) => {
    const text = asked.theirs.children[side].querySelector(".text");
    text.className = "text";
    if (raw) fillRaw(text, asked.texts[side]); else fill(text, html);
  });
  at("raw").setAttribute("aria-pressed", String(raw));
}

function showRaw() {
  if (!asked) return;
  raw = !raw;
  drawAnswers();
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part.slice("data: ".length));
  }
}

let saying = null;  // the visit in which a message waits for a choice
async function say(text) {
  const here = visit;
  if (saying === here) return;  // Enter, once more
  saying = here;
  try { await (asked ? choose("skip") : choosing); } finally { if (saying === here) saying = null; }
  if (visit !== here || reading) return;  // another one is open, and nothing is said into it: the words are a draft of theirs
  at("words").value = at("words").value.replace(text, "").trimStart();  // what was typed meanwhile stays
  keepDraft();
  await send({ text, after: length, tries: 0, at: Date.now(), name: `${sentIn(key)} ${Math.random()}` });
}

async function send(message) {
  const { text, after, tries } = message;
  const path = `chat/${key}/say`;
  sent.put({ ...message, tries: tries + 1 });
  await read(message, (signal) => asking.request(path, { text, after }, signal));
}

// Read an answer while it is written. Where the connection is lost it goes on being written, and is looked for again.
async function read(message, request) {
  const which = key;
  const { text } = message;
  const mine = element("div", "turn user");
  mine.append(element("div", "plain", unturned(text)));
  mine.firstChild.dir = "auto";
  const theirs = element("div");
  at("turns").append(mine, theirs);
  toEnd();
  notice("");
  const stop = new AbortController();
  busy(stop);
  let lost = true;
  let moved = false;
  try {
    const answer = await request(stop.signal);
    lost = moved = answer.status === 409;  // the conversation is longer than this page knows
    if (!answer.ok) throw await asking.refusal(answer);
    lost = true;
    for await (const event of events(answer)) {
      if (key !== which) return;
      lost = !follow(event, mine, theirs);
    }
    if (lost) throw new Error("the answer broke off");
    sent.forget(message);
    length += 2;
  } catch (error) {
    if (key !== which || reading !== stop) return;  // another one was opened: the answer is there when this one is again
    if (lost && !error.told) { again(which, moved); return; }
    mine.remove();
    theirs.remove();
    giveBack(message);
    notice(error.told === "stopped" ? "Stopped before the first word. Your message is still here." : `No answer: ${error.message}. Your message is still here.`);
  } finally {
    if (reading === stop) busy(null);
  }
  await list().catch(() => {});
}

async function again(which, moved) {
  notice(moved ? "This conversation has gone on: reading it again." : "The connection is lost. The answer goes on being written; looking for it again.");
  const looking = { looks: true, abort() {} };
  busy(looking);
  while (reading === looking) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    if (reading === looking) await open(which).catch((error) => { if (final(error)) notice(`${error.message}.`); });
  }
}

// A place for one answer, or for two beside each other.
function panes(sides) {
  const made = element("div", sides === 2 ? "two" : "");
  for (let side = 0; side < sides; side += 1) {
    const pane = element("div", "turn assistant");
    if (sides === 2) pane.append(element("h3", "", side ? "Right" : "Left"));
    pane.append(element("div", "plain text"));
    pane.lastChild.dir = "auto";
    made.append(pane);
  }
  return made;
}

// The conversation's end, not the page's: on a phone the list comes after it. Who has scrolled up to read is left there.
const talk = at("turns").parentElement;
const atEnd = () => talk.getBoundingClientRect().bottom < window.innerHeight + 40;
const toEnd = () => talk.scrollIntoView({ block: "end" });

function follow(event, mine, theirs) {
  if (event.kind === "failed" || event.kind === "stopped") {
    throw Object.assign(new Error(event.message), { told: event.kind });
  }
  if (event.kind === "begin") {
    theirs.replaceChildren(...panes(event.sides).children);
    theirs.className = event.sides === 2 ? "two" : "";
    if (event.held) notice("Both answers are being written, and shown once both are complete.");
  } else if (event.kind === "piece") {
    const follows = atEnd();
    theirs.children[event.side].querySelector(".plain").append(unturned(event.text));
    if (follows) toEnd();
  } else if (event.kind === "done") {
    notice("");
    mine.replaceWith(turn("user", event.asked));
    if (event.comparison === null) {
      theirs.replaceWith(answered(event.html[0], event.responses[0], 0));
    } else {
      ask({ ...event, theirs });
      if (!at("words").value) at("words").blur();  // so that one key answers
      theirs.firstChild.scrollIntoView({ block: "start" });
    }
    return true;
  }
  return false;
}

async function choose(choice, event) {
  if (!asked || (event && !gesture.means(event))) return;
  const mine = store(choice);
  choosing = mine;
  try { await mine; } finally { if (choosing === mine) choosing = null; }
}

async function store(choice) {
  const [which, here] = [key, visit];
  const question = asked;
  const { comparison, responses, html, theirs } = question;
  const seconds = gesture.seconds();
  ask(null);
  let response;
  try {
    ({ response } = await call(`${which}/choose`, { comparison, choice, seconds }));
  } catch (error) {
    if (visit !== here) return;
    if (!final(error)) ask(question);
    throw new Error(`Your choice was not stored: ${error.message}`);
  }
  if (visit !== here) {
    if (key === which) await open(which);  // opened again meanwhile, it may still ask
    return;
  }
  theirs.replaceWith(answered(html[responses.indexOf(response)], response, 0));
  notice(choice === "skip" ? "Skipped." : "Thank you. The conversation goes on with this answer.");
  at("words").focus();
}

async function waitForModel() {
  for (;;) {
    const { phase, reason } = await call("state").catch((error) => ({ phase: "away", reason: error.message }));
    if (phase === "ready") { notice("", "model"); return; }
    notice(phase === "loading" ? `The model is being loaded${reason ? ` (${reason})` : ""}; you can write already.` : `The model does not run: ${reason}`, "model");
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

at("new").addEventListener("click", failing(() => open(null)));
at("consent").addEventListener("submit", failing(async (event) => {
  event.preventDefault();
  await open((await call("begin", {})).key);
}));
at("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("words").value.trim();
  if (text && !reading) failing(say)(text);
});
at("words").addEventListener("input", keepDraft);
at("raw").addEventListener("click", showRaw);
at("words").addEventListener("keydown", (event) => {
  if (entered(event)) { event.preventDefault(); at("say").requestSubmit(); }
});
// Who is quick may overtake their own message: it is stopped once it is there.
at("stop").addEventListener("click", failing(async () => {
  const [which, what] = [key, reading];
  while (reading === what && !(await call(`${which}/stop`, {})).stopped) {
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}));
at("delete").addEventListener("click", failing(async () => {
  if (!at("delete").dataset.sure) { confirming(true); return; }
  confirming(false);
  const gone = key;
  const { learned_by: versions } = await call(`${gone}/delete`, {});
  const theirs = [`manners-draft ${visitor} ${gone}`, sentIn(gone)];
  for (const name of Object.keys(localStorage)) if (theirs.some((begin) => name.startsWith(begin))) localStorage.removeItem(name);
  await (key === gone ? open(null) : list());
  notice(versions.length ? `Deleted. These versions had learned from it already: ${versions.join(", ")}.` : "Deleted.");
}));
at("reporting").addEventListener("close", failing(async () => {
  if (at("reporting").returnValue !== "report") return;
  await call("report", { response: reported, reason: at("reporting").querySelector("input:checked").value, note: at("note").value });
  at("note").value = "";
  notice("Reported. A reviewer will look at it.");
}));
for (const one of document.querySelectorAll("[data-choice]")) one.addEventListener("click", failing((event) => choose(one.dataset.choice, event)));
document.addEventListener("keydown", (event) => {
  if (!asked || event.repeat || writing(event) || event.target.closest("dialog")) return;
  const pressed = shortcut(event);
  if (CHOICES[pressed]) { event.preventDefault(); failing(choose)(CHOICES[pressed], event); }
  else if (pressed === "r") showRaw();
});

// A server that is being started anew, or has too much to do, is asked again. Meanwhile something may have been opened.
async function start() {
  for (;;) {
    try {
      const conversations = await list();
      const before = conversations.find((one) => one.key === localStorage.getItem(last()));
      if (!there) await open((before ?? conversations[0])?.key ?? null);
      notice("", "list");
      return;
    } catch (error) {
      notice(`Your conversations are not here yet: ${error.message}. Trying again.`, "list");
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

waitForModel();
start();
