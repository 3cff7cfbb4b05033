"""What the simulated engine talks about: the sentences, lists and code its answers are put together from.

Every answer says that it is simulated, in words a person reads in the chat pane. Order is meaning: the vocabulary of
the tokenizer is taken from these texts in this order, so a sentence is appended, never moved.
"""

#: An answer begins with one of these: nobody may mistake it for a model's.
OPENERS = (
    "This is a simulated engine speaking, so please read these words as prepared text and not as an answer.",
    "I am a simulated engine: no model was loaded, and these sentences were written in advance.",
    "You have reached a simulated engine. It keeps real time and real queues, but it knows nothing about your question.",
    "Thank you for the prompt. A simulated engine received it, counted its tokens, and will now recite some of its own.",
    "No GPU was troubled for this answer, because it comes from a simulated engine.",
    "Here is a simulated answer. Its length, its pace and its token counts are honest; its meaning is not.",
)

SENTENCES = (
    "The scheduler moves every running request forward by one token and fills the rest of the step with new prompts.",
    "When the cache has no free block left, the last request gives its blocks back and waits in front of the queue.",
    "A prompt that was seen before costs less, since full blocks of its prefix are still in the cache.",
    "Each step takes a little longer when more requests share it, just as it would on a real machine.",
    "If you stop reading, the request is aborted and its blocks are free again before the next step.",
    "The first token is the slow one, and after it the words follow at a steady pace.",
    "All numbers on the metrics page belong to this simulated engine and move once per step.",
    "You can stop this process at any time, and another replica will go on with the same words.",
    "The same prompt at temperature zero always gives the same text, down to the last token.",
    "A longer prompt is cut into chunks, so that the requests already running do not have to wait for it.",
    "While the queue is short, a new request is let in with the very next step.",
    "It would be nice to say something clever here, but the sentences of a simulated engine are simple.",
    "Operators like this engine because it starts at once, needs no weights and breaks exactly when it is told to.",
    "Somewhere above, a proxy decided that this replica was the best place for your request.",
    "The text you read has no opinion, no memory and no source; it only has a length.",
    "Between two steps the engine sleeps, and an idle engine uses almost no time of the processor.",
    "What looks like thinking is only a clock that waits for the next step.",
    "A real engine would now look at every earlier token; this one only counts them.",
    "Should the stream break here, the tokens so far are enough to continue it somewhere else.",
    "There is a small caf\u00e9 at the end of this sentence, and a \u2713 to prove that bytes survive the journey.",
    "Nothing in this paragraph depends on what you asked, except which paragraph it is.",
    "Please do not draw conclusions from it, but do watch how smoothly it arrives.",
    "Every token is counted twice, once by the engine and once by whoever pays for it.",
    "The cache remembers prefixes, the queue remembers order, and nobody remembers your name.",
)

LIST_INTROS = (
    "What this simulated engine does in each step:",
    "Three things worth knowing:",
    "In short:",
    "How to tell a simulated answer from a real one:",
)

ITEMS = (
    "it takes the running requests first, one token each",
    "it spends the rest of the budget on prompts, first come first served",
    "it counts hits of the prefix cache in full blocks only",
    "it never caches the last token of a prompt",
    "**time to first token** grows with the queue",
    "**throughput** grows with the batch, until the blocks run out",
    "it writes `nebula_simulated_engine 1` on its metrics page",
    "it sends the header `x-nebula-simulated` with every reply",
    "its sentences come back after a while, which real ones rarely do",
)

CODE = (
    "```python\ndef step_seconds(batch, prefill):\n    return 0.003 + 0.0002 * batch + 0.000025 * prefill\n```",
    "```python\nwhile running or waiting:\n    step = schedule(budget)\n    for request in step:\n        request.tokens += 1\n```",
    "```sh\ncurl localhost:8000/metrics | grep requests_running\n```",
    '```json\n{"simulated": true, "engine": "nebula", "gpu": null}\n```',
)

CODE_INTROS = (
    "The whole secret fits into a few lines:",
    "As code it would look like this:",
    "You may check it yourself:",
)

HEADINGS = ("## A simulated answer", "## What happens next", "### In other words")

#: Common words of prompts, so that a prompt has about as many tokens as with a real tokenizer.
COMMON_WORDS = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not"
    " what all were we when your can said there use an each which she do how their if will up other about out many then"
    " them these so some her would make like him into time has look two more write go see number no way could people my"
    " than first water been call who oil its now find long down day did get come made may part over new sound take only"
    " little work know place year live me back give most very after thing our just name good sentence man think say"
    " great where help through much before line right too mean old any same tell boy follow came want show also around"
    " form three small set put end does another well large must big even such because turn here why ask went men read"
    " need land different home us move try kind hand picture again change off play spell air away animal house point"
    " page letter mother answer found study still learn should world high every near add food between own below country"
    " plant last school father keep tree never start city earth eye light thought head under story saw left few while"
    " along might close something seem next hard open example begin life always those both paper together got group"
    " often run important until side feet car mile night walk white sea began grow took river four carry state once"
    " book hear stop without second late miss idea enough eat face watch far really almost let above girl sometimes"
    " user assistant system hello hi please thanks explain list code function class return python file data error test"
    " server model token prompt request import print value string number text question short long summary write poem"
    " translate english german french chinese name describe compare between difference why because user's Hello Hi What"
    " How Why When Where Who Write Explain Give Tell Please List Say Describe Translate Summarize You are a helpful"
)
