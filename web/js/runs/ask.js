// Questions and messages, in the dialogs and toasts of the front end.

import { app } from "../../../../scripts/app.js"
import { word } from "../page/words.js"

/** Whether a person says yes to what cannot be undone. */
export async function sure(title, message) {
  const { dialog } = app.extensionManager
  return Boolean(dialog?.confirm ? await dialog.confirm({ title, message, type: "delete" }) : window.confirm(message))
}

/** The whole number that a person gives; null when there is none, or it is no number above `least`. */
export async function number(title, message, proposed, least) {
  const { dialog } = app.extensionManager
  const given = dialog?.prompt
    ? await dialog.prompt({ title, message, defaultValue: String(proposed) })
    : window.prompt(message, String(proposed))
  if (given === null || given === undefined) return null
  const found = Number(given)
  if (Number.isInteger(found) && found > least) return found
  tell("warn", word("{given} is not a whole number above {least}", { given, least }), word("Nothing was changed."))
  return null
}

export function tell(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: severity === "error" ? 12000 : 6000 })
}

/** Does what a person asked for; what goes wrong is told. */
export async function doing(title, action) {
  try {
    return await action()
  } catch (error) {
    tell("error", title, error.message)
    return undefined
  }
}
