// A field that finds one of many adapters as its name is typed (ARIA's combobox with a list).

import { html, useId, useRef, useState } from "../html.js";
import { choices, refresh } from "./choices.js";

const MOST = 60; // entries shown at once

/** `value` is a name; with `empty`, the list begins with that entry, whose name is "". */
export function Picker({ value, label, empty, onPick }) {
  const id = useId();
  const [open, setOpen] = useState(false);
  const [typed, setTyped] = useState(null); // null: nothing yet
  const [active, setActive] = useState(0);
  const list = useRef(null);
  const found = open ? matching(typed ?? "", empty) : [];
  const shown = found.slice(0, MOST);

  const show = (event) => {
    if (open) return;
    refresh();
    setOpen(true);
    setTyped(null);
    setActive(0);
    event.target.select();
  };
  const close = () => {
    setOpen(false);
    setTyped(null);
  };
  const pick = (choice) => {
    close();
    if (choice && choice.name !== value) onPick(choice.name);
  };
  const move = (event, to) => {
    event.preventDefault();
    if (!open) return show(event);
    const at = Math.max(0, Math.min(shown.length - 1, to));
    setActive(at);
    list.current?.children[at]?.scrollIntoView({ block: "nearest" });
  };
  const press = (event) => {
    if (event.key === "ArrowDown") move(event, open ? active + 1 : 0);
    else if (event.key === "ArrowUp") move(event, active - 1);
    else if (event.key === "Enter" && open && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      pick(shown[active]);
    } else if (event.key === "Escape" && open) {
      event.preventDefault();
      event.stopPropagation();
      close();
    }
  };
  return html`
    <div class="picker">
      <input
        role="combobox"
        aria-label=${label}
        aria-expanded=${String(open)}
        aria-controls=${`${id}-list`}
        aria-autocomplete="list"
        aria-activedescendant=${open && shown.length ? `${id}-${active}` : undefined}
        autocomplete="off"
        spellcheck=${false}
        placeholder="Search adapters"
        value=${typed ?? (value || (empty ?? ""))}
        onClick=${show}
        onInput=${(event) => {
          setOpen(true);
          setTyped(event.target.value);
          setActive(0);
        }}
        onKeyDown=${press}
        onBlur=${close}
      />
      <ul role="listbox" id=${`${id}-list`} aria-label=${label} hidden=${!open} ref=${list}>
        ${shown.map(
          (choice, at) => html`
            <li
              role="option"
              id=${`${id}-${at}`}
              key=${choice.name}
              aria-selected=${String(at === active)}
              onPointerDown=${(event) => {
                event.preventDefault();
                pick(choice);
              }}
            >
              <span>${choice.title ?? choice.name}</span>
              ${choice.note && html`<small>${choice.note}</small>`}
            </li>
          `,
        )}
        ${open && !shown.length && html`<li role="option" aria-disabled="true" aria-selected="false">No adapter has this name</li>`}
        ${found.length > MOST &&
        html`<li role="option" aria-disabled="true" aria-selected="false">
          ${found.length - MOST} more: type a part of the name
        </li>`}
      </ul>
    </div>
  `;
}

function matching(typed, empty) {
  const parts = typed.toLowerCase().split(/\s+/).filter(Boolean);
  const all = empty ? [{ name: "", title: empty, note: "without an adapter" }, ...choices.value] : choices.value;
  return all.filter(({ name, title, note }) => {
    const text = `${title ?? name} ${note}`.toLowerCase();
    return parts.every((part) => text.includes(part));
  });
}
