// What a page asks the server for, it asks as who opened it: since then somebody else may have signed in on this browser,
// and nothing that waits here is theirs.
export const { prefix, visitor } = document.body.dataset;

// POST with a body, GET without one.
export function request(path, body, signal) {
  const headers = { "manners-visitor": encodeURIComponent(visitor) };
  if (body === undefined) return fetch(`${prefix}/${path}`, { headers, signal });
  headers["content-type"] = "application/json";
  return fetch(`${prefix}/${path}`, { method: "POST", headers, body: JSON.stringify(body), signal });
}

export async function refusal(answer) {
  const told = (await answer.json().catch(() => null))?.error;
  const away = told?.code === "somebody_else"
    ? `somebody else has signed in on this browser: sign in as ${visitor} again, and reload this page`
    : "you are signed out: reload this page, and sign in by your password or a link of the owner's";
  const error = new Error(answer.status === 401 ? away : told?.message ?? `the server answered ${answer.status}`);
  error.status = answer.status;
  error.ours = told?.param !== undefined;  // else it was refused by something between this page and the server
  return error;
}

// What is no answer of ours was given by something in between, as by a proxy where one has to sign in first.
export const strange = () => new Error("what came is no answer of the server's");

export async function call(path, body) {
  const answer = await request(path, body);
  if (!answer.ok) throw await refusal(answer);
  return answer.json().catch(() => { throw strange(); });
}
