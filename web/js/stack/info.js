// What is known of a row's file, on a card.

import { find, pictureUrl } from "../library/library.js"
import { element, split } from "../page/dom.js"
import { popup } from "../page/popup.js"

const LINES = [
  ["Model", (file) => file.family || file.base], ["Trigger words", (file) => file.words?.join(", ")],
  ["Author", (file) => file.author], ["Licence", (file) => file.license], ["Allowed", (file) => file.permissions],
  ["Strength", (file) => file.strength], ["Hint", (file) => file.hint], ["Notes", (file) => file.notes],
  ["File", (file) => file.name],
]

/** `at`: an element or {x, y}. */
export function showInfo(item, at) {
  const file = find(item.name)
  const lines = file ? LINES.map(([key, value]) => [key, value(file)]).filter(([, value]) => value) : []
  const bare = split(item.name)[1]
  const fault = file ? file.fault : "This file was not found."
  const made = popup({ className: "loom-info", role: "dialog", "aria-label": `About ${bare}`, tabIndex: -1 }, at,
    ...(file?.picture ? [element("img", { className: "loom-info-picture", alt: "", src: pictureUrl(file) })] : []),
    element("div", { className: "loom-info-title" }, file?.title || bare),
    ...(fault ? [element("div", { className: "loom-fault" }, fault)] : []),
    element("dl", { className: "loom-info-facts" },
      ...lines.flatMap(([key, value]) => [element("dt", {}, key), element("dd", {}, value)])))
  made.focus()
}
