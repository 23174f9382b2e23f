// A dialog as large as the window: all figures of a node, or one of its pictures.

import { api } from "../../../../scripts/api.js"
import { openTitled } from "../page/dialog.js"
import { element } from "../page/dom.js"
import { word } from "../page/words.js"

/** Opens a dialog with these elements. `closed` is called when it is gone. */
export function openLarge(title, children, closed) {
  return openTitled("loom-large", title, [element("div", { className: "loom-page" }, ...children)], closed)
}

export function addressOf({ filename, subfolder = "", type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
}

/** Rows of pictures below their titles; each opens large, with the others of all rows beside it. */
export function gallery(rows) {
  const all = rows.flatMap(([title, files]) => files.map((file) => ({ ...file, title })))
  let at = 0
  return rows.map(([title, files]) => {
    const shown = files.map((file) => {
      const place = at++
      const label = word("{picture}; {title}: open large", { picture: file.label, title })
      const made = element("button", { type: "button", className: "loom-thumb", "aria-label": label },
        element("img", { src: addressOf(file), alt: "", loading: "lazy", draggable: false }),
        element("span", { title: file.label }, file.label))
      made.addEventListener("click", () => openPicture(all, place))
      return made
    })
    return element("section", { className: "loom-pictures", "aria-label": title },
      element("div", { className: "loom-caption", title }, title), element("div", { className: "loom-strip" }, ...shown))
  })
}

/** Arrow keys and buttons go from picture to picture. */
function openPicture(all, place) {
  const picture = element("img", { className: "loom-whole" })
  const words = element("p", { role: "status" })
  const step = (by) => {
    place = (place + by + all.length) % all.length
    const { label, title } = all[place]
    picture.src = addressOf(all[place])
    picture.alt = label
    words.textContent = word("{place} of {count}: {label}. {title}", { place: place + 1, count: all.length, label, title })
  }
  const button = (words, by) => {
    const made = element("button", { type: "button", className: "loom-measure-button" }, words)
    made.addEventListener("click", () => step(by))
    return made
  }
  const dialog = openLarge(word("Picture"), [picture, words,
    element("div", { className: "loom-measure-actions" }, button(`\u2190 ${word("Before")}`, -1), button(`${word("Next")} \u2192`, 1))])
  dialog.addEventListener("keydown", ({ key }) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[key]
    if (by) step(by)
  })
  step(0)
}
