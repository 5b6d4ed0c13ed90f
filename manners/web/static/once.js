// What was just made is shown once: a reload opens the page, and does not make another one.
history.replaceState(null, "", `${document.body.dataset.prefix}/accounts`);
