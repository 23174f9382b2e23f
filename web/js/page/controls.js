// Small controls that our lists are made of.

import { element } from "./dom.js"

export function button(className, text, label, action) {
  const made = element("button", { type: "button", className, title: label, "aria-label": label }, text)
  made.addEventListener("click", action)
  return made
}

export function toggle(className, label, action) {
  const made = button(className, "", label, action)
  made.setAttribute("role", "switch")
  return made
}

export function pressed(made, on) {
  made.setAttribute("aria-checked", String(on))
}
