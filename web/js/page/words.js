// The page's own words in the language of the front end. The English is the key; what it is in other languages comes
// from locales/ of this pack, which ComfyUI serves with what all packs have there.

import { api } from "../../../../scripts/api.js"
import { app } from "../../../../scripts/app.js"

const SETTING = "Comfy.Locale"
let tables = null // by language, once one beside English was needed

/** `text` as it is read in the front end's language, its {names} filled in; as it is where there is no translation. */
export function word(text, values = {}) {
  const said = tables?.[language()]?.[text] ?? text
  return said.replace(/\{(\w+)\}/g, (whole, name) => (Object.hasOwn(values, name) ? String(values[name]) : whole))
}

/** Marks a text of a table that is looked up later, with `word`. */
export function phrase(text) {
  return text
}

/** Makes the words of other languages known when the front end speaks one, or is told to: then it is not yet so. */
export async function learn() {
  app.ui.settings.addEventListener(`${SETTING}.change`, ask)
  if (language() !== "en") await ask()
}

async function ask() {
  if (tables) return
  const answer = await api.fetchApi("/i18n").catch(() => undefined)
  if (!answer?.ok) return
  const all = Object.entries(await answer.json())
  tables = Object.fromEntries(all.map(([name, { loraLoom }]) => [name, loraLoom ?? {}]))
}

function language() {
  return app.extensionManager?.setting?.get(SETTING) ?? "en"
}
