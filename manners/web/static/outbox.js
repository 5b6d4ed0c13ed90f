// Verdicts wait in the browser until the server has stored them: an entry each, under the token of its view, so that two
// tabs never write over each other's. What the browser will not keep is kept in this page.
export function outbox(visitor) {
  const begin = `manners-outbox ${visitor} `;  // one browser may serve several people
  const ours = (key) => key.startsWith(begin) && !key.slice(begin.length).includes(" ");  // "Anna" is not "Anna Lena"
  const here = new Map();

  function all() {
    const found = new Map(here);
    for (const key of Object.keys(localStorage).filter(ours)) {
      try { found.set(key, JSON.parse(localStorage.getItem(key))); } catch { /* what is damaged is no verdict */ }
    }
    return [...found.values()].sort((one, other) => one.at - other.at);
  }

  function add(verdict) {
    const key = begin + verdict.view;
    const entry = { at: Date.now(), verdict };
    here.set(key, entry);
    try {
      localStorage.setItem(key, JSON.stringify(entry));
      return true;
    } catch { return false; }  // no room, or not allowed
  }

  function remove(view) {
    here.delete(begin + view);
    localStorage.removeItem(begin + view);
  }

  // An older page kept one list of them.
  const old = begin.trimEnd();
  try { for (const verdict of JSON.parse(localStorage.getItem(old) ?? "[]")) add(verdict); } catch { /* the same */ }
  localStorage.removeItem(old);
  return { all: () => all().map((entry) => entry.verdict), add, remove };
}
