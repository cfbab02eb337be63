// Light, dark, or as the system is.

import { computed, effect, signal } from "./html.js";

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

const dark = matchMedia("(prefers-color-scheme: dark)");
const systemDark = signal(dark.matches);
dark.addEventListener("change", (event) => (systemDark.value = event.matches));

/** "light" or "dark": what is shown, which the style sheets go by. */
export const shown = computed(() =>
  theme.value === "system" ? (systemDark.value ? "dark" : "light") : theme.value,
);

effect(() => {
  document.documentElement.dataset.theme = shown.value;
});

effect(() => {
  try {
    localStorage.setItem(NAME, theme.value);
  } catch {
    // The choice lasts as long as the page then.
  }
});
