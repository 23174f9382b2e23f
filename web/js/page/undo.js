// Changes of the graph as steps that can be undone.

import { app } from "../../../../scripts/app.js"

/** What was changed until now is a step of its own. */
export function captured() {
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.captureCanvasState?.()
}

/** Whatever `change` does to the graph is one step, however many the front end would make of it. Returns its result. */
export function asOneStep(change) {
  captured()
  app.canvas.emitBeforeChange()
  try {
    return change()
  } finally {
    app.canvas.emitAfterChange()
  }
}
