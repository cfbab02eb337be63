// The API key. The tab keeps it until it is closed; "remember" keeps it in this browser.

import { signal } from "./html.js";

const NAME = "lorry.key";

function stored() {
  try {
    return sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME) ?? "";
  } catch {
    return ""; // The browser keeps nothing for this page.
  }
}

export const key = signal(stored());

export function setKey(text, remember) {
  key.value = text;
  try {
    localStorage.removeItem(NAME);
    sessionStorage.removeItem(NAME);
    if (text) (remember ? localStorage : sessionStorage).setItem(NAME, text);
  } catch {
    // It lasts as long as the page then.
  }
}
