// LoRA Loom in the front end: what its nodes report, and the list of rows on Load LoRA Stack.

import { app } from "../../../scripts/app.js"
import { element } from "./dom.js"
import { complete } from "./files.js"
import { refresh } from "./library.js"
import { hearProblems, Report } from "./report.js"
import { Stack } from "./stack.js"

app.registerExtension({
  name: "LoraLoom",
  init() {
    document.head.append(element("link", { rel: "stylesheet", href: new URL("../stack.css", import.meta.url).href }))
    hearProblems()
  },
  beforeRegisterNodeDef(_nodeType, definition) {
    if (definition.name.startsWith("LoraLoom_")) complete(definition)
  },
  nodeCreated(node) {
    if (node.comfyClass === "LoraLoom_LoadLoraStack") new Stack(node)
    if (node.comfyClass?.startsWith("LoraLoom_")) new Report(node)
  },
  refreshComboInNodes() {
    refresh()
  },
})
