"use strict";
// The page's words in both languages, and texts that show everything.
const WORDS = {
  en: {
    models: "Models that answer", newChat: "New chat", settings: "Settings", theme: "Dark or light", language: "中文", languageName: "Switch to Chinese",
    keyLabel: "This server wants its API key. It stays in this tab and is forgotten when you close it.", keySave: "Use key",
    temperature: "Temperature", maxTokens: "Max tokens", topP: "top_p", seed: "Seed", system: "System prompt", stops: "Stop strings",
    stopsHint: "One a line; \\n stands for a line break", blank: "server’s default", thinking: "Thinking",
    thinkingAuto: "as trained", thinkingOn: "on", thinkingOff: "off", probabilities: "Show token probabilities",
    prompt: "Your message", promptHint: "Ask something", input: "Input", inputHint: "Input (optional): what the instruction is about, as in training",
    send: "Send", stop: "Stop", hint: "Enter sends, Shift+Enter starts a new line, Esc stops.",
    empty: "Ask a question. All chosen models answer it side by side.", you: "You", thoughts: "Thoughts", thinkingNow: "Thinking…", waiting: "Waiting…",
    again: "Answer again", copyText: "Copy answer", copyCurl: "Copy as curl", copyPython: "Copy as Python", copied: "Copied", notCopied: "The browser does not allow copying.",
    base: "base", tuned: "tuned", stopped: "stopped by you", cut: "cut at the most tokens", tokens: (n) => `${n} token${n === 1 ? "" : "s"}`,
    speed: (value) => `${value} tokens/s`, first: (value) => `first after ${value} s`, nothing: "empty answer", noModel: "Choose at least one model above.",
    notNumber: (name) => `${name} is not a number. Correct it in the settings.`, unreachable: "The server cannot be reached. Check that it still runs, then try again.",
    broken: "The server sent something that is not an answer of this API.", brokeOff: "The connection ended before the answer was complete.", noModels: "The server serves no models.", badKey: "The key has characters that no key has. Type it again.",
    withoutProbabilities: "Answer without token probabilities", legend: "Probability of each token:", legendHint: "Point at a token, or reach it with Tab and the arrow keys.",
    chosen: "chosen", probability: "Probability", logprob: "logprob", others: "Most likely tokens here", done: "The answers are complete.", asking: "The models answer.", template: "Prompt template", answerTokens: "tokens of the answer; arrow keys move",
  },
  zh: {
    models: "参与回答的模型", newChat: "新对话", settings: "设置", theme: "深色或浅色", language: "English", languageName: "切换到英文",
    keyLabel: "此服务器需要 API key。它只保存在当前标签页中，关闭后即清除。", keySave: "使用此 key",
    temperature: "温度（temperature）", maxTokens: "最多 token 数", topP: "top_p", seed: "随机种子", system: "系统提示词", stops: "停止字符串",
    stopsHint: "每行一个；\\n 表示换行", blank: "服务器默认值", thinking: "思考",
    thinkingAuto: "与训练一致", thinkingOn: "开启", thinkingOff: "关闭", probabilities: "显示 token 概率",
    prompt: "你的消息", promptHint: "输入问题", input: "输入", inputHint: "输入（可选）：指令所针对的内容，与训练时一致",
    send: "发送", stop: "停止", hint: "Enter 发送，Shift+Enter 换行，Esc 停止。",
    empty: "输入一个问题，所选模型会并排作答。", you: "你", thoughts: "思考过程", thinkingNow: "思考中…", waiting: "等待中…",
    again: "重新回答", copyText: "复制回答", copyCurl: "复制为 curl", copyPython: "复制为 Python", copied: "已复制", notCopied: "浏览器不允许复制。",
    base: "基座", tuned: "微调", stopped: "已被你停止", cut: "达到最多 token 数，已截断", tokens: (n) => `${n} 个 token`,
    speed: (value) => `${value} token/s`, first: (value) => `首个 ${value} 秒`, nothing: "回答为空", noModel: "请在上方至少选择一个模型。",
    notNumber: (name) => `“${name}”不是数字，请在设置中改正。`, unreachable: "无法连接服务器。请确认它仍在运行，然后重试。",
    broken: "服务器返回的内容不是此 API 的回答。", brokeOff: "回答尚未完成，连接已中断。", noModels: "服务器没有提供任何模型。", badKey: "key 中有不允许的字符，请重新输入。",
    withoutProbabilities: "不带 token 概率重新回答", legend: "每个 token 的概率：", legendHint: "将鼠标指向 token，或用 Tab 和方向键移到它。",
    chosen: "已选", probability: "概率", logprob: "logprob", others: "此处最可能的 token", done: "回答已完成。", asking: "模型正在回答。", template: "提示词模板", answerTokens: "回答中的 token；用方向键移动",
  },
};
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const asked = new URLSearchParams(location.search).get("lang") || (data.language === "auto" ? navigator.language : data.language);
let language = asked.toLowerCase().startsWith("zh") ? "zh" : "en";
const word = (name) => WORDS[language][name];

const { make, switchTheme } = elements;

// What has no shape of its own, or turns the direction of the text around it, is shown by its number.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;
const shown = (text) => text.replace(HIDDEN, (character) => `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
