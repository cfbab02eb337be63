// Light, dark, or as the system is.

import { effect, signal } from "./html.js";

const NAME = "lorry.theme";
export const THEMES = ["system", "light", "dark"];

function stored() {
  try {
    const found = localStorage.getItem(NAME);
    return THEMES.includes(found) ? found : "system";
  } catch {
    return "system";
  }
}

export const theme = signal(stored());

effect(() => {
  document.documentElement.dataset.theme = theme.value;
  try {
    localStorage.setItem(NAME, theme.value);
  } catch {
    // The choice lasts as long as the page then.
  }
});
