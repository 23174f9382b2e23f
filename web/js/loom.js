// LoRA Loom in the front end: what its nodes report, and the list of rows on Load LoRA Stack.

import { app } from "../../../scripts/app.js"
import { element } from "./dom.js"
import { complete } from "./files.js"
import { refresh } from "./library.js"
import { after } from "./nodes.js"
import { openOn, Report } from "./report.js"
import { Stack } from "./stack.js"
import { hear, showAll, soon } from "./told.js"
import { keepStyled, restyle, wordsForZeros } from "./zeros.js"

app.registerExtension({
  name: "LoraLoom",
  init() {
    document.head.append(element("link", { rel: "stylesheet", href: new URL("../stack.css", import.meta.url).href }))
    hear(openOn)
  },
  setup() {
    keepStyled()
  },
  beforeRegisterNodeDef(_nodeType, definition) {
    if (definition.name.startsWith("LoraLoom_")) complete(definition)
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("LoraLoom_")) return
    for (const widget of node.widgets ?? []) after(widget, "callback", soon)
    wordsForZeros(node)
    after(node, "onAdded", restyle)
    if (node.comfyClass === "LoraLoom_LoadLoraStack") new Stack(node)
    new Report(node)
  },
  afterConfigureGraph() {
    showAll()
    restyle()
  },
  refreshComboInNodes() {
    refresh()
  },
})
