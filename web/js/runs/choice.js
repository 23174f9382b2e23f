// Which run is open in the panel, and which are laid over its curve: one choice for the list and the panel.

const MOST = 3 // runs that are laid over another

export const choice = { open: null, over: [] }

const listeners = new Set()

/** Calls `listener` whenever the choice changes, until the returned function is called. */
export function onChoice(listener) {
  listeners.add(listener)
  return () => listeners.delete(listener)
}

export function choose(id) {
  if (id === choice.open) return
  choice.open = id
  choice.over = choice.over.filter((each) => each !== id)
  tell()
}

/** Lays a run over the open one or takes it away; of too many, the first goes. The first of all is the open one. */
export function toggle(id) {
  if (choice.open === null) return choose(id)
  if (id === choice.open) return
  const without = choice.over.filter((each) => each !== id)
  choice.over = without.length < choice.over.length ? without : [...without, id].slice(-MOST)
  tell()
}

function tell() {
  for (const listener of listeners) listener()
}
