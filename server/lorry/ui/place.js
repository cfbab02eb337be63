// Where the user is: the part of the address behind `#`, as `#/adapters/legal?sort=rank`.
//
// The state that a colleague should see stands there too, so that an address is a comparison.

import { signal } from "./html.js";

/** `{ page, rest, query }`: the first part of the path, the parts behind it, URLSearchParams. */
export const place = signal(read());

function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [page, ...rest] = path.split("/").filter(Boolean).map(decoded);
  return { page: page ?? "playground", rest, query: new URLSearchParams(query) };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Returns the address of a page: `address("adapters", ["legal"], { sort: "rank" })`. */
export function address(page, rest = [], query = {}) {
  const search = new URLSearchParams(query).toString();
  const path = [page, ...rest].map(encodeURIComponent).join("/");
  return `#/${path}${search ? `?${search}` : ""}`;
}

/** Goes to an address. `replace`: without a step in the browser's history. */
export function go(to, { replace = false } = {}) {
  const url = new URL(location.href);
  url.hash = to;
  if (url.href === location.href) return;
  history[replace ? "replaceState" : "pushState"](null, "", url);
  place.value = read();
}

addEventListener("hashchange", () => (place.value = read()));
addEventListener("popstate", () => (place.value = read()));
