// Copying text, also where the page is served to another machine without a certificate.

import { element } from "./dom.js"

/** Puts a text on the clipboard; false where the browser does not allow it. `place` is an element of the open dialog. */
export async function copy(text, place) {
  try {
    await navigator.clipboard.writeText(text)
    return true
  } catch {
    return copySelected(text, place)
  }
}

/** The old way, which asks for no permission. What had the focus has it again. */
function copySelected(text, place) {
  const focused = document.activeElement
  const field = element("textarea", { value: text, className: "loom-unseen", "aria-hidden": "true" })
  place.append(field)
  field.select()
  const copied = document.execCommand("copy")
  field.remove()
  focused?.focus()
  return copied
}
