// A table of records: it scrolls within itself where it is wider than the page.

import { html } from "./html.js";

/** `columns` are titles, or `{ title, number, unseen }`. `children` are the rows. */
export function Listing({ label, columns, children }) {
  const each = columns.map((column) => (typeof column === "string" ? { title: column } : column));
  return html`
    <div class="scroller" tabindex="0" role="region" aria-label=${label}>
      <table class="plain">
        <thead>
          <tr>
            ${each.map(
              ({ title, number, unseen }) => html`
                <th scope="col" class=${number ? "number" : undefined}>
                  <span class=${unseen ? "unseen" : undefined}>${title}</span>
                </th>
              `,
            )}
          </tr>
        </thead>
        <tbody>${children}</tbody>
      </table>
    </div>
  `;
}

export const ACTIONS = { title: "Actions", unseen: true };
