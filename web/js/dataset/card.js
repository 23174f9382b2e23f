// One picture of the page with its caption below it.

import { element } from "../page/dom.js"
import { phrase, word } from "../page/words.js"
import { marksOf } from "./book.js"
import { button } from "./controls.js"
import { thumbnailUrl } from "./server.js"
import { markWord } from "./words.js"

const SHARP = 256 // px of a card from which on a larger thumbnail is drawn

/**
 * `page` has what cards share: `asked`, `side` in px, `frames` and `masks` (whether to draw them), and is told with
 * `pick(name, event)`, `edited(name, text)`, `next(name)`, `keepMine(picture)`, `dropMine(picture)`, `paintMask(name)` and
 * `toGraph(name)`.
 */
export class Card {
  constructor(picture, page) {
    this.name = picture.name
    this.page = page
    this.picture = picture
    this.image = element("img", { alt: "", draggable: false, decoding: "async" })
    this.mask = element("img", { alt: "", className: "loom-set-mask", draggable: false })
    this.frame = element("div", { className: "loom-set-frame" }, element("span", {}))
    this.fitted = element("div", { className: "loom-set-fitted" }, this.image, this.mask, this.frame)
    this.shot = element("input", { type: "checkbox", className: "loom-set-pick", "aria-label": word("Select {name}", { name: this.name }) })
    const tick = element("span", { className: "loom-set-tick", "aria-hidden": "true" }, "\u2713")
    this.title = element("div", { className: "loom-set-file", title: this.name }, this.name)
    this.size = element("div", { className: "loom-set-size" })
    this.marks = element("div", { className: "loom-set-marks" })
    const label = word("Caption of {name}", { name: this.name })
    this.text = element("textarea", { className: "loom-set-caption", spellcheck: false, "aria-label": label })
    this.question = element("div", { className: "loom-set-question" })
    this.element = element("div", { className: "loom-set-card", role: "group", "aria-label": this.name },
      element("div", { className: "loom-set-shot" }, this.fitted, tick, this.shot, this.tools()),
      element("div", { className: "loom-set-card-head" }, this.title, this.size), this.marks, this.text,
      this.question)
    this.shot.addEventListener("click", (event) => page.pick(this.name, event))
    this.image.addEventListener("error", () => (this.image.hidden = true)) // what is wrong is told as a mark
    this.image.addEventListener("load", () => this.shape([this.image.naturalWidth, this.image.naturalHeight]))
    this.text.addEventListener("change", () => page.edited(this.name, this.text.value))
    this.text.addEventListener("keydown", (event) => this.key(event))
  }

  tools() {
    const { name, page } = this
    this.paints = button(word("Mask"), () => page.paintMask(name), word("Paint what is learned of {name}", { name }))
    this.loads = button(word("Load Image"), () => page.toGraph(name), word("Load Image with {name}", { name }))
    return element("div", { className: "loom-set-tools" }, this.paints, this.loads)
  }

  key(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault()
      this.page.edited(this.name, this.text.value)
      this.page.next(this.name, event.shiftKey ? -1 : 1)
    } else if (event.key === "Escape") {
      event.preventDefault()
      event.stopPropagation()
      this.text.value = this.saved()
      this.shot.focus()
    }
  }

  saved() {
    return this.picture.mine ?? this.picture.pending ?? this.picture.caption
  }

  /** What somebody is typing stays. */
  fill() {
    const text = this.saved()
    const typing = document.activeElement === this.text && this.text.value !== this.filled
    if (!typing && this.text.value !== text) this.text.value = text
    if (this.text.value === text) this.filled = text
  }

  show(picture, { selected, current, locked }) {
    this.picture = picture
    this.fill()
    this.text.readOnly = Boolean(locked || picture.fault)
    this.text.placeholder = picture.fault ? word("cannot be read") : locked ? word("no caption") : word("Describe the picture")
    this.element.classList.toggle("loom-set-selected", selected)
    this.shot.checked = selected
    this.shot.tabIndex = this.paints.tabIndex = this.loads.tabIndex = current ? 0 : -1
    this.paints.disabled = Boolean(locked || picture.look?.fault)
    this.draw()
    this.ask()
  }

  draw() {
    const { look, mask, marks } = this.picture
    const side = this.page.side * devicePixelRatio > SHARP ? 512 : 256
    const source = thumbnailUrl(this.page.asked, this.picture, side)
    if (this.image.getAttribute("src") !== source) {
      this.image.hidden = false
      this.image.setAttribute("src", source)
    }
    const shown = mask && this.page.masks
    this.mask.hidden = !shown
    const learned = shown && thumbnailUrl(this.page.asked, { ...this.picture, version: mask }, side, "1")
    if (shown && this.mask.getAttribute("src") !== learned) this.mask.setAttribute("src", learned)
    this.shape(look?.size)
    this.size.textContent = look?.size?.[0] ? `${look.size[0]} \u00d7 ${look.size[1]}` : ""
    this.frame.hidden = !(this.page.frames && look?.bucket?.[0])
    if (!this.frame.hidden) this.cut(look)
    this.marks.replaceChildren(...marksOf({ ...this.picture, marks }).map(([mark, words]) =>
      element("span", { className: "loom-set-mark", title: words }, markWord(mark))))
  }

  /** The picture as large as it fits into its square. */
  shape(size) {
    if (!size?.[0] || !size[1]) return
    const ratio = size[0] / size[1]
    this.fitted.style.width = `${100 * Math.min(1, ratio)}%`
    this.fitted.style.height = `${100 * Math.min(1, 1 / ratio)}%`
  }

  cut({ frame: [left, top, width, height], bucket }) {
    const percent = { left, top, width, height }
    for (const [side, part] of Object.entries(percent)) this.frame.style[side] = `${100 * part}%`
    this.frame.firstChild.textContent = `${bucket[0]} \u00d7 ${bucket[1]}`
  }

  /** What is to be chosen when a caption was changed by somebody else, or could not be written. */
  ask() {
    const { mine, why, caption } = this.picture
    this.question.hidden = mine === undefined
    if (mine === undefined) return this.question.replaceChildren()
    const now = caption ? `\u201c${caption}\u201d` : word("there is none now")
    const words = why ? word("Not saved: {why}.", { why }) : word("Changed on disk meanwhile: {now}", { now })
    this.question.replaceChildren(
      element("div", { className: "loom-set-why", title: words }, words),
      button(word(why ? phrase("Try again") : phrase("Keep mine")), () => this.page.keepMine(this.picture)),
      button(word(why ? phrase("Discard") : phrase("Take that")), () => this.page.dropMine(this.picture)),
    )
  }
}
