// Which run is open in the panel, which are laid over its curve, which are being deleted: the same for list and panel.

const MOST = 3 // runs that are laid over another

export const choice = { open: null, over: [], leaving: new Set() }

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

/** Takes a run off the list and the panel while its folder is deleted, or puts it back. */
export function leave(id, leaves) {
  if (leaves) choice.leaving.add(id)
  else choice.leaving.delete(id)
  tell()
}

function tell() {
  for (const listener of listeners) listener()
}
