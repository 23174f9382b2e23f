// What is known of a row's file, on a card.

import { find, pictureUrl } from "../library/library.js"
import { element, split } from "../page/dom.js"
import { popup } from "../page/popup.js"
import { phrase, spoken, word } from "../page/words.js"

const LINES = [
  [phrase("Model"), (file) => file.family || file.base], [phrase("Trigger words"), (file) => file.words?.join(", ")],
  [phrase("Author"), (file) => file.author], [phrase("Licence"), (file) => file.license], [phrase("Allowed"), (file) => file.permissions],
  [phrase("Strength"), (file) => file.strength], [phrase("Hint"), (file) => file.hint], [phrase("Notes"), (file) => file.notes],
  [phrase("File"), (file) => file.name],
]

/** `at`: an element or {x, y}. */
export function showInfo(item, at) {
  const file = find(item.name)
  const lines = file ? LINES.map(([key, value]) => [key, value(file)]).filter(([, value]) => value) : []
  const bare = split(item.name)[1]
  const fault = file ? spoken(file.fault) : word("This file was not found.")
  const made = popup({ className: "loom-info", role: "dialog", "aria-label": word("About {name}", { name: bare }), tabIndex: -1 }, at,
    ...(file?.picture ? [element("img", { className: "loom-info-picture", alt: "", src: pictureUrl(file) })] : []),
    element("div", { className: "loom-info-title" }, file?.title || bare),
    ...(fault ? [element("div", { className: "loom-fault" }, fault)] : []),
    element("dl", { className: "loom-info-facts" },
      ...lines.flatMap(([key, value]) => [element("dt", {}, word(key)), element("dd", {}, value)])))
  made.focus()
}
