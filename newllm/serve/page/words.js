/** Every word of the page, in English and Japanese. */

const en = {
  skip: "Skip to the message box",
  conversations: "Conversations",
  this_conversation: "This conversation",
  close: "Close",
  new: "New conversation",
  untitled: "New conversation",
  copy_of: "{title} (fork)",
  no_sessions: "None yet. Say something below, or drop a saved conversation on this page.",
  more: "Show more",
  open: "Open a saved conversation",
  drop_hint: "or drop its file anywhere on this page.",
  drop_here: "Drop to go on with this conversation",
  rename: "Rename",
  undo: "Undo turn",
  fork: "Fork",
  save: "Save to file",
  delete: "Delete",
  settings: "Settings",
  theme_light: "Light",
  theme_dark: "Dark",
  theme_to_light: "Change to light colours",
  theme_to_dark: "Change to dark colours",
  other_language: "日本語",
  row: "{time} · {tokens} tokens",
  row_label: "{title}, {time}, {tokens} tokens",
  search: "Search conversations",
  none_found: "None found.",
  which_model: "Model",
  code: "code",
  copy: "Copy",
  copied: "Copied",
  again: "Another answer",
  edit: "Change the question, in a fork",

  state_heading: "Context vector",
  negative: "negative",
  positive: "positive",
  picture_words: "{layers} of {width} numbers ({shown} shown): what it keeps of all that was said. Each row is a moment; the newest is at the bottom.",
  picture_words_still: "{layers} of {width} numbers ({shown} shown) as they are now: what it keeps of all that was said.",
  picture_none: "The memory of a conversation, drawn while an answer is written.",
  picture_label: "Heat map of the context vector: {layers}, {shown} channels each",
  recall_heading: "Recall",
  recall_words: "What followed the last 1, 2, 3 and 5 tokens earlier in this conversation: a table each, coloured where it is filled.",
  recall_label: "How full the four tables of recall are",
  parameters: "{count} parameters",
  counts: "{size} of counts",
  layer_one: "1 layer",
  layer_many: "{count} layers",
  tokens_read: "Tokens so far",
  speed: "Tokens per second",
  memory_heading: "Memory of this conversation",
  this_state: "New-LLM's state: always",
  kv_cache: "Transformer's key-value cache: by now",
  ratio: "An equal transformer would hold {times} times as much by now, and more with every token.",
  ratio_small: "The cache of an equal transformer is still smaller, and grows with every token.",
  ratio_none: "The state has this size from the first token to the millionth.",
  formula: "2 × {layers} × width {width} × {tokens} tokens × 4 bytes = {bytes}",
  short: "{state} of state · {tokens} tokens",
  short_speed: "{state} of state · {tokens} tokens · {speed}/s",

  messages: "Messages",
  welcome: "Say something",
  welcome_words: "This model has {parameters} parameters: at least a thousand times fewer than the assistants you may know. It was trained from scratch on {data}, and remembers this conversation in {state}, however long it gets.{counts}",
  welcome_counts: " Beside its parameters it has {size} of counts: what followed what in those texts.",
  data_dolly: "short questions and answers in English (level 1)",
  data_hh_rlhf: "English conversations with preferred answers (level 2)",
  data_ultrachat: "English conversations on very many topics (level 3)",
  data_code_alpaca: "programming tasks with their answers (level 4)",
  data_math: "mathematics problems with worked solutions (level 5)",
  data_dolly_ja: "short questions and answers in Japanese",
  data_text: "books, notes or code, which hold no conversations",
  data_wikitext2: "encyclopedia articles, which hold no conversations",
  data_chat: "somebody's own conversations",
  can_heading: "What it can",
  can: [
    "answer in the form it was trained on",
    "repeat what is frequent in its training rows",
    "keep to a topic for a few sentences",
  ],
  cannot_heading: "What it cannot",
  cannot: [
    "know the world: names, dates and numbers are mostly made up",
    "reason or calculate reliably, however sure it sounds",
    "understand a language that its rows are not written in",
  ],
  honest_foot: "Try it to see how little memory a conversation needs; do not rely on what it says.",
  caution: "A very small model, often wrong.",
  keys: "Enter sends, Shift+Enter is a new line, Esc stops.",
  dropped: "The first {count} messages are no longer kept as text. The context vector was made by all of them.",
  you: "You",
  model: "Model",
  question: "Your message",
  question_hint: "Say something",
  send: "Send",
  stop: "Stop (Esc)",
  writing: "The model is writing.",
  answered: "Answer: {text}",
  empty_answer: "(an empty answer)",
  note: "{tokens} tokens, {speed} a second",
  note_length: "{tokens} tokens, the limit in the settings; {speed} a second",
  note_stopped: "stopped",
  recalled: "Dotted underline: recalled, from where the same words stood earlier in this conversation.",
  undone: "The last turn is undone.",
  editing: "This is a fork: change the question and send it. The other conversation stays as it is.",
  forked: "This is a fork: the other conversation stays as it is.",
  saved: "Saved: {bytes} hold {tokens} tokens of conversation.",
  opened: "Going on with {title}: {tokens} tokens, none of them read again.",
  renamed: "Renamed.",
  deleted: "Deleted: {title}",
  bring_back: "Bring it back",
  brought_back: "It is back.",

  temperature: "Temperature",
  temperature_help: "0 takes the likeliest word every time; higher is more varied.",
  top_p: "Top-p",
  top_p_help: "Choose among the likeliest words that together have this probability.",
  penalty: "Repetition penalty",
  penalty_help: "Above 1, words of the answer are less likely to come again.",
  max_tokens: "Longest answer, in tokens",
  seed: "Seed",
  seed_hint: "random",
  seed_help: "With a seed, the same question at the same place gets the same answer.",
  api_key: "API key",
  api_key_help: "Only if the server asks for one. Forgotten when the page is closed or loaded again.",
  keep_key: "Keep it until this tab is closed",
  defaults: "Defaults",
  done: "Done",

  retry: "Try now",
  away: "The server does not answer. Trying again… Is newllm serve still running?",
  back: "The server is back.",
  restored: "The server was restarted; this conversation was put back from this page's copy.",
  lost: "This conversation is no longer on the server. Open its saved file to go on with it.",
  gone_but_here: "This conversation is no longer on the server. This page has a copy of it.",
  put_back: "Put it back",
  delete_oldest: "Delete the oldest",
  error_session_changed: "This conversation went on elsewhere; this is how it stands now. Send again if you still want to.",
  error_disk_full: "The server cannot save conversations: its disk is full or cannot be written.",
  error_other: "{message}",
  error_invalid_api_key: "The server asks for an API key: enter it in the settings.",
  error_session_busy: "An answer is still being written in this conversation. Wait a moment, then try again.",
  error_session_not_found: "This conversation is no longer on the server. Choose another, or open its saved file.",
  error_session_damaged: "The server's file of this conversation is damaged. Open a saved copy of it, or delete it.",
  error_too_many_sessions: "The server keeps no more conversations. Delete one, then try again.",
  error_too_many_requests: "The server is writing too many answers just now. Try again in a moment.",
  error_context_length_exceeded: "This message is too long. Send it in several turns: the state carries them all.",
  error_request_too_large: "This is too large for the server. Send a shorter text, or a session file of this model.",
  error_invalid_session_file: "{message}",
  error_nothing_to_undo: "There is no earlier turn that can be undone.",
  error_not_finite: "The answer was given up: the model's numbers went wrong. Undo the turn and try again.",
  error_shutting_down: "The server is shutting down. Start it again to go on.",
  error_bad_settings: "A setting is out of range; see Settings.",
  error_broken: "The answer broke off before its end. What was written until then is kept.",
};

const ja = {
  skip: "メッセージ入力へ移動",
  conversations: "会話",
  this_conversation: "この会話",
  close: "閉じる",
  new: "新しい会話",
  untitled: "新しい会話",
  copy_of: "{title}（分岐）",
  no_sessions: "まだありません。下に何か入力するか、保存した会話のファイルをこのページにドロップしてください。",
  more: "もっと見る",
  open: "保存した会話を開く",
  drop_hint: "ファイルをページ上にドロップしても開けます。",
  drop_here: "ドロップすると、この会話の続きから始まります",
  rename: "名前を変更",
  undo: "一つ戻す",
  fork: "分岐",
  save: "ファイルに保存",
  delete: "削除",
  settings: "設定",
  theme_light: "ライト",
  theme_dark: "ダーク",
  theme_to_light: "ライト（明るい配色）に切り替える",
  theme_to_dark: "ダーク（暗い配色）に切り替える",
  other_language: "English",
  row: "{time}・{tokens} トークン",
  row_label: "{title}、{time}、{tokens} トークン",
  search: "会話を検索",
  none_found: "見つかりません。",
  which_model: "モデル",
  code: "コード",
  copy: "コピー",
  copied: "コピーしました",
  again: "別の回答を書かせる",
  edit: "分岐して質問を書き直す",

  state_heading: "コンテキストベクトル",
  negative: "負",
  positive: "正",
  picture_words: "{layers}、各 {width} 個の数値（表示は {shown} 個）。これまでの会話はすべてこの中に畳み込まれています。1 行が 1 時点で、いちばん下が最新です。",
  picture_words_still: "{layers}、各 {width} 個の数値（表示は {shown} 個）の現在の値。これまでの会話はすべてこの中に畳み込まれています。",
  picture_none: "会話の記憶を、回答が書かれるあいだここに描きます。",
  picture_label: "コンテキストベクトルのヒートマップ：{layers}、各 {shown} チャネル",
  recall_heading: "想起",
  recall_words: "直前の 1、2、3、5 トークンのあとに、この会話で何が続いたか。四つの表に控え、埋まったところに色が付きます。",
  recall_label: "想起の四つの表の埋まり具合",
  parameters: "{count} パラメータ",
  counts: "数え上げの表 {size}",
  layer_one: "1 層",
  layer_many: "{count} 層",
  tokens_read: "これまでのトークン数",
  speed: "毎秒のトークン数",
  memory_heading: "この会話の記憶量",
  this_state: "New-LLM の状態（常に一定）",
  kv_cache: "Transformer の KV キャッシュ（現時点）",
  ratio: "同じ規模の Transformer なら、現時点で {times} 倍のメモリが必要です。差は 1 トークンごとに広がります。",
  ratio_small: "同じ規模の Transformer のキャッシュはまだ小さめですが、1 トークンごとに増えていきます。",
  ratio_none: "最初のトークンでも100万トークン目でも、この大きさのままです。",
  formula: "2 × {layers} × 幅 {width} × {tokens} トークン × 4 バイト = {bytes}",
  short: "状態 {state}・{tokens} トークン",
  short_speed: "状態 {state}・{tokens} トークン・毎秒 {speed}",

  messages: "メッセージ",
  welcome: "話しかけてみましょう",
  welcome_words: "このモデルのパラメータ数は {parameters}。ふだん目にする AI アシスタントの千分の一にも満たない規模です。{data}だけを使ってゼロから学習しました。会話がどれだけ長くなっても、記憶は {state} のままです。{counts}",
  welcome_counts: "パラメータのほかに、その文章の中で何のあとに何が続いたかを数えた表が {size} あります。",
  data_dolly: "英語の短い質問と回答（レベル 1）",
  data_hh_rlhf: "好まれる応答を集めた英語の対話（レベル 2）",
  data_ultrachat: "幅広い話題の英語の対話（レベル 3）",
  data_code_alpaca: "プログラミングの課題と解答（レベル 4）",
  data_math: "数学の問題と解法（レベル 5）",
  data_dolly_ja: "日本語の短い質問と回答",
  data_text: "本、メモ、コードなどの文章（対話は含みません）",
  data_wikitext2: "百科事典の記事（対話は含みません）",
  data_chat: "独自に用意された対話",
  can_heading: "できること",
  can: [
    "学習した形式に沿って答える",
    "学習データに頻出する内容を再現する",
    "数文のあいだ話題を保つ",
  ],
  cannot_heading: "できないこと",
  cannot: [
    "世の中を知ること。名前や日付、数値の多くは作りごとです",
    "確かな推論や計算。もっともらしくても間違えます",
    "学習データにない言語の理解。英語で学習したモデルには英語でどうぞ",
  ],
  honest_foot: "会話の記憶がどれほど小さくて済むかを見るためのものです。回答の内容は当てにしないでください。",
  caution: "ごく小さなモデルで、よく間違います。",
  keys: "Enter で送信、Shift+Enter で改行、Esc で停止。",
  dropped: "最初の {count} 件のメッセージは文章としては残っていませんが、コンテキストベクトルには反映されています。",
  you: "あなた",
  model: "モデル",
  question: "メッセージ",
  question_hint: "メッセージを入力",
  send: "送信",
  stop: "停止（Esc）",
  writing: "モデルが書いています。",
  answered: "回答：{text}",
  empty_answer: "（空の回答）",
  note: "{tokens} トークン、毎秒 {speed}",
  note_length: "{tokens} トークン（設定の上限）、毎秒 {speed}",
  note_stopped: "停止しました",
  recalled: "点線の下線は、この会話で前に同じ語のあとに続いた語を想起したものです。",
  undone: "最後のやり取りを取り消しました。",
  editing: "分岐した会話です。質問を書き直して送信してください。元の会話はそのまま残ります。",
  forked: "分岐した会話です。元の会話はそのまま残ります。",
  saved: "保存しました。{bytes} に {tokens} トークンの会話が入っています。",
  opened: "「{title}」の続きから始めます。{tokens} トークンを読み直す必要はありません。",
  renamed: "名前を変更しました。",
  deleted: "削除しました：{title}",
  bring_back: "元に戻す",
  brought_back: "元に戻しました。",

  temperature: "温度",
  temperature_help: "0 では常に最も確率の高い語を選び、大きいほど多様になります。",
  top_p: "Top-p",
  top_p_help: "確率の高い順に、合計がこの値になるまでの語から選びます。",
  penalty: "繰り返しの抑制",
  penalty_help: "1 より大きいと、回答に一度出た語が再び出にくくなります。",
  max_tokens: "最大トークン数",
  seed: "シード",
  seed_hint: "毎回変える",
  seed_help: "指定すると、同じ状態での同じ質問には同じ回答が返ります。",
  api_key: "API キー",
  api_key_help: "サーバーが求める場合のみ。ページを閉じるか再読み込みすると忘れます。",
  keep_key: "このタブを閉じるまで保持する",
  defaults: "既定値に戻す",
  done: "完了",

  retry: "今すぐ再試行",
  away: "サーバーが応答しません。再接続を試みています… newllm serve は動いていますか？",
  back: "サーバーに再接続しました。",
  restored: "サーバーが再起動していたため、このページの控えから会話を復元しました。",
  lost: "この会話はサーバーに残っていません。続けるには保存したファイルを開いてください。",
  gone_but_here: "この会話はサーバーに残っていませんが、このページに控えがあります。",
  put_back: "元に戻す",
  delete_oldest: "いちばん古い会話を削除",
  error_session_changed: "この会話は別の場所で続けられました。これが現在の内容です。よければもう一度送信してください。",
  error_disk_full: "サーバーが会話を保存できません。ディスクがいっぱいか、書き込めません。",
  error_other: "サーバーのエラー：{message}",
  error_invalid_api_key: "API キーが必要です。設定で入力してください。",
  error_session_busy: "この会話ではまだ回答を書いています。少し待ってからやり直してください。",
  error_session_not_found: "この会話はサーバーに残っていません。別の会話を選ぶか、保存したファイルを開いてください。",
  error_session_damaged: "サーバー上のこの会話のファイルが壊れています。保存した控えを開くか、削除してください。",
  error_too_many_sessions: "これ以上会話を保存できません。どれかを削除してからやり直してください。",
  error_too_many_requests: "サーバーが混み合っています。少し待ってからやり直してください。",
  error_context_length_exceeded: "メッセージが長すぎます。何回かに分けて送ってください。内容はすべて状態に引き継がれます。",
  error_request_too_large: "サーバーの上限を超えています。短い文章か、このモデルの会話ファイルを送ってください。",
  error_invalid_session_file: "このファイルは開けません：{message}",
  error_nothing_to_undo: "これ以上は戻せません。",
  error_not_finite: "数値の異常で回答を中止しました。一つ戻してからやり直してください。",
  error_shutting_down: "サーバーが終了処理中です。続けるには再起動してください。",
  error_bad_settings: "設定の値が範囲外です。設定を確認してください。",
  error_broken: "回答が途中で切れました。そこまでの内容は残っています。",
};

const languages = { en, ja };
let current = "en";

/** Speak "en" or "ja" from now on, also in the parts of the page that are marked for it. */
export function setLanguage(language) {
  current = language;
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-word]")) {
    element.textContent = say(element.dataset.word);
  }
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", say(element.dataset.label));
    if (element.tagName === "BUTTON") element.title = say(element.dataset.label);
  }
  for (const element of document.querySelectorAll("[data-hint]")) {
    element.placeholder = say(element.dataset.hint);
  }
}

export function language() {
  return current;
}

/** The words of a name, with what they say in braces filled in; a list of them for some names. */
export function say(name, values = {}) {
  const words = languages[current][name];
  if (typeof words !== "string") return words;
  return words.replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

/** The words of an error of the API: our own where we have some, else the server's. */
export function sayError(error) {
  const known = `error_${error.code}` in en ? `error_${error.code}` : "error_other";
  return say(known, { message: error.message });
}

/** 1234567 as 1.2 million. */
export function rounded(number) {
  const options = { notation: "compact", compactDisplay: "long", maximumSignificantDigits: 3 };
  return number.toLocaleString(current, options);
}

/** 1234567 as 1,234,567. */
export function count(number) {
  return Math.round(number).toLocaleString(current);
}

/** A time in seconds as a word: 5 minutes ago; dates of other years in full. */
export function ago(seconds) {
  const passed = Date.now() / 1000 - seconds;
  const units = [["second", 60], ["minute", 60], ["hour", 24], ["day", 7]];
  let left = passed;
  for (const [unit, size] of units) {
    if (left < size) {
      const format = new Intl.RelativeTimeFormat(current, { numeric: "auto" });
      return format.format(-Math.max(0, Math.round(unit === "second" ? 0 : left)), unit);
    }
    left /= size;
  }
  return new Date(1000 * seconds).toLocaleDateString(current, { dateStyle: "medium" });
}

/** 4 as 4 layers. */
export function layers(number) {
  return number === 1 ? say("layer_one") : say("layer_many", { count: count(number) });
}

/** A number of bytes in the unit that suits it (1 kB = 1,000 bytes). */
export function bytes(number) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (number >= 1000 && unit < units.length - 1) {
    number /= 1000;
    unit += 1;
  }
  const digits = unit > 0 && number < 100 ? 1 : 0;
  const shown = number.toLocaleString(current, { maximumFractionDigits: digits });
  return `${shown} ${current === "ja" && unit === 0 ? "バイト" : units[unit]}`;
}
