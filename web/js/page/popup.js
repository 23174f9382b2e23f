// What floats above the page until it is left: by Escape, by a press elsewhere, or when it is done.

import { element } from "./dom.js"

const EDGE = 8 // px that stay free at the window's edges
const OWN = ["keydown", "keyup", "paste", "copy", "cut", "wheel", "contextmenu", "pointerdown"] // not the canvas's

/** Shows an element with these properties and children below `at`, an element or {x, y}; `hidePopover()` ends it. */
export function popup(properties, at, ...children) {
  const className = `loom loom-popup ${properties.className}`
  const made = element("div", { ...properties, className, popover: "auto" }, ...children)
  for (const kind of OWN) made.addEventListener(kind, (event) => event.stopPropagation())
  made.addEventListener("toggle", (event) => event.newState === "closed" && made.remove())
  document.body.append(made)
  made.showPopover()
  place(made, at instanceof Element ? at.getBoundingClientRect() : new DOMRect(at.x, at.y, 0, 0))
  return made
}

/** Below the box, or above it where there is more room. */
function place(made, box) {
  const { width, height } = made.getBoundingClientRect()
  const below = box.bottom + height + EDGE <= innerHeight || box.bottom <= innerHeight - box.top
  const top = below ? box.bottom + 2 : box.top - height - 2
  made.style.left = `${Math.max(EDGE, Math.min(box.left, innerWidth - width - EDGE))}px`
  made.style.top = `${Math.max(EDGE, Math.min(top, innerHeight - height - EDGE))}px`
}
