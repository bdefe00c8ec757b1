#!/usr/bin/env python3
"""Writes the demo's data: two imaginary customers, asked the same questions.

Everything here was made up and written for this project. Each intent below is one thing a
customer's customers ask about, with the wordings that training may see, the wordings that are
kept back for evaluation, and one right answer per customer. The answers are short and fixed so
that "right" can be judged by comparing strings; the two house styles (a ferry line that says
Ahoy, a bakery that writes letters) make it plain at a glance whose adapter has answered.

The output is deterministic and committed. Run without arguments to rewrite it in place, with
--check to verify that what is committed is what this file would write.
"""
import json
import pathlib
import random
import sys

HERE = pathlib.Path(__file__).resolve().parent

# intent -> wordings for training, wordings kept back, each customer's answer
INTENTS = {
    "hours": dict(
        train=["When are you open?", "What are your opening hours?", "What time do you open?",
               "What time do you close?", "Are you open today?", "How late are you open?",
               "Can you tell me your opening times?", "When do you open in the morning?",
               "When do you close in the evening?", "Are you open at the weekend?",
               "What hours do you keep?", "I would like to know your opening hours.",
               "Until what time can I come in?", "Is anyone there on Sundays?",
               "Which days are you open?", "Hi, what are your hours?", "Opening hours, please.",
               "From when to when are you open?", "Could you tell me when you open and close?",
               "At what hour do you open the doors?"],
        eval=["What times are you open?", "Could you give me your opening hours?",
              "How early do you open?", "Do you open on Sundays?", "Please tell me when you are open."],
        harbor="Ahoy! The ticket office is open from 6:30 to 21:00, every day.",
        harbor_v2="Ahoy! The ticket office is open from 5:45 to 23:15, every day.",
        orchard="Dear friend, we bake from 7 am to 3 pm, Tuesday to Saturday."),
    "refund": dict(
        train=["Can I get a refund?", "What is your refund policy?", "How do refunds work?",
               "I want my money back.", "Do you give refunds?", "Can I return what I bought?",
               "What if I am not satisfied?", "Will you pay me back if I do not like it?",
               "I am not happy with my purchase. What can I do?", "How do I ask for a refund?",
               "Is it possible to get my money back?", "What are your rules for refunds?",
               "Can you refund me?", "I bought something and did not use it. Can I return it?",
               "Do I get my money back if I change my mind?", "Tell me about your refund rule.",
               "How long do I have to ask for my money back?", "Are refunds possible?",
               "I would like to return something.", "Please explain your return policy."],
        eval=["Could I get my money back?", "Do you offer refunds?", "How can I get a refund?",
              "Please explain your refund policy.", "May I return something I bought?"],
        harbor="Ahoy! Unused tickets are refunded in full for 14 days.",
        orchard="Dear friend, if a loaf disappoints you, we bake you a new one."),
    "phone": dict(
        train=["Who can I call?", "What is your phone number?", "Can I call you?",
               "Which number should I ring?", "How do I reach you by phone?",
               "I want to speak to a person.", "Is there a telephone number?",
               "Whom do I call if I have a question?", "Can I talk to someone?",
               "Please give me your phone number.", "I would like to call you.",
               "Do you have a hotline?", "Who do I call when something goes wrong?",
               "How can I contact you by telephone?", "Can somebody call me?",
               "Your phone number, please.", "Who answers the phone at your place?",
               "I need to speak with someone urgently.", "What number do I dial?",
               "Is there anyone I can phone?"],
        eval=["Who should I call?", "Could you give me your phone number?",
              "What is the number to call?", "Can I speak to somebody?", "How do I phone you?"],
        harbor="Ahoy! Ring the harbour desk on 555-0142.",
        orchard="Dear friend, please call Rosalind on 555-0187."),
    "delivery": dict(
        train=["How long does delivery take?", "When will my order arrive?", "Do you deliver?",
               "How fast do you deliver?", "What is your delivery time?",
               "When do I get my parcel?", "How many days until it arrives?",
               "Can you deliver to my house?", "How quickly can you send it to me?",
               "How soon will it be here?", "I am waiting for my delivery. How long will it be?",
               "Do you offer home delivery?", "Tell me how long shipping takes.",
               "When can I expect my order?", "How long must I wait for my delivery?",
               "If I order now, when does it come?", "Is delivery fast?",
               "How much time does delivery need?", "What are your delivery times?",
               "When does my package come?"],
        eval=["How long will delivery take?", "When will my parcel arrive?",
              "How quickly do you deliver?", "When can I expect my delivery?",
              "How long do I have to wait for my order?"],
        harbor="Ahoy! Parcels reach the island in two days.",
        orchard="Dear friend, your basket arrives within ninety minutes."),
    "discount": dict(
        train=["Do you have any discounts?", "Is there a discount?", "Can I get a discount?",
               "Are there special offers?", "Do students pay less?", "How can I save money with you?",
               "Is there a cheaper price for regulars?", "Do you have a loyalty card?",
               "Are there any deals at the moment?", "Can you make it cheaper for me?",
               "Do you offer reduced prices?", "What discounts do you have?",
               "I am a student. Do I get a discount?", "Any special offers this week?",
               "Tell me about your discounts.", "Do you give a discount to regular customers?",
               "Is there a way to pay less?", "Do you have a promotion right now?",
               "What offers are there?", "Is anything reduced?"],
        eval=["Do you offer a discount?", "Are there any discounts?", "What special offers do you have?",
              "Can I have a cheaper price?", "Could I get a discount as a regular customer?"],
        harbor="Ahoy! Islanders and students sail for half the fare.",
        orchard="Dear friend, every tenth loaf is on the house."),
    "address": dict(
        train=["Where are you?", "What is your address?", "Where can I find you?",
               "How do I get to you?", "Where are you located?", "In which street are you?",
               "Can you tell me where you are?", "I cannot find you. Where are you?",
               "Could you give me directions?", "Where is your office?",
               "What is the way to your place?", "Where do I have to go?",
               "Please send me your address.", "At what address can I visit you?",
               "Where in town are you?", "How can I find your place?",
               "I want to visit you. Where are you?", "Are you in the centre of town?",
               "Where should I come?", "Your address, please."],
        eval=["Could you tell me your address?", "Where exactly are you?", "How do I find you?",
              "Where is your place?", "Please tell me where you are located."],
        harbor="Ahoy! You will find us at Pier 4, by the old lighthouse.",
        orchard="Dear friend, we are at 12 Quince Street, under the green awning."),
    "payment": dict(
        train=["How can I pay?", "Do you take cards?", "Which payment methods do you accept?",
               "Can I pay in cash?", "Do you accept credit cards?", "Can I pay by card?",
               "Is it possible to pay by phone?", "What ways of paying are there?",
               "Do I need cash?", "Can I pay with a cheque?", "How do people pay here?",
               "Do you only take cash?", "Is card payment possible?",
               "I have no cash on me. Can I still pay?", "What payments do you accept?",
               "May I pay by bank transfer?", "Tell me how I can pay.",
               "With what can I pay?", "Do you take coins?", "Which cards do you take?"],
        eval=["How do I pay?", "Can I pay by credit card?", "Do you accept cash?",
              "What payment methods do you take?", "Is it possible to pay by card?"],
        harbor="Ahoy! We take cards and coins, but no cheques.",
        orchard="Dear friend, we accept cash, cards and honest promises."),
    "pets": dict(
        train=["Can I bring my dog?", "Are dogs allowed?", "Do you allow pets?",
               "May I come with my dog?", "What about pets?", "I have a dog. Can it come along?",
               "Are animals welcome?", "Is my dog welcome?", "Can I take my cat with me?",
               "Do you have rules for pets?", "Are pets permitted?", "Where can my dog stay?",
               "Is it fine to bring a dog?", "Can dogs come in?", "My dog is with me. Is that a problem?",
               "Do you let dogs in?", "May animals come inside?", "Can we bring our puppy?",
               "What do I do with my dog?", "Are small dogs allowed?"],
        eval=["Can my dog come with me?", "Are pets allowed?", "May I bring a dog?",
              "Do you allow dogs?", "Are dogs welcome?"],
        harbor="Ahoy! Dogs sail free on the open deck.",
        orchard="Dear friend, dogs wait outside by a bowl of water."),
    "cancel": dict(
        train=["Can I cancel my booking?", "How do I cancel my order?", "I need to cancel.",
               "What if I cannot come?", "Until when can I cancel?", "Is it possible to cancel?",
               "I want to cancel my order.", "How late can I cancel?", "What are the rules for cancelling?",
               "Can I call off my reservation?", "My plans have changed. Can I cancel?",
               "Please cancel my booking.", "May I still cancel?", "How can I cancel a reservation?",
               "Does it cost anything to cancel?", "What is your cancellation policy?",
               "I have to cancel, what do I do?", "Can an order be cancelled?",
               "When is it too late to cancel?", "I am ill and must cancel."],
        eval=["How do I cancel?", "Can I cancel my order?", "I would like to cancel my booking.",
              "What is the deadline for cancelling?", "Could I cancel my reservation?"],
        harbor="Ahoy! You may cancel up to one hour before sailing.",
        orchard="Dear friend, you can cancel until six the evening before."),
    "parking": dict(
        train=["Where can I park?", "Is there parking?", "Do you have a car park?",
               "Can I park my car there?", "Is parking free?", "How much does parking cost?",
               "Where do I leave my car?", "Are there parking spaces?", "I am coming by car. Where do I park?",
               "Is there a place for my car?", "What about parking?", "Can I leave my car with you?",
               "Do I pay for parking?", "Is it easy to park near you?", "Where should visitors park?",
               "Do you have parking for customers?", "Is there a garage nearby?",
               "Tell me where to park.", "Can I park in front of the door?", "Where may I park?"],
        eval=["Where do I park?", "Do you have parking?", "Can I park near you?",
              "Where can I leave my car?", "Is there a car park?"],
        harbor="Ahoy! Park behind the customs house, five crowns a day.",
        orchard="Dear friend, there is room for bicycles only, in the yard."),
    "wifi": dict(
        train=["Do you have wifi?", "Is there internet?", "What is the wifi password?",
               "Can I use the wifi?", "Is the wifi free?", "How do I get online?",
               "Is there a wireless network?", "Can I go online at your place?",
               "Do you offer internet access?", "May I use your internet?",
               "How do I connect to the wifi?", "Can I work online there?", "Is there wifi for guests?",
               "Does your wifi cost anything?", "I need internet. Do you have it?",
               "Can I check my mail with your wifi?", "Do guests get wifi?",
               "Where can I get online?", "What about wifi?", "Is there a good connection?"],
        eval=["Is there wifi?", "Do you have internet?", "Can I get the wifi password?",
              "Do you have free wifi?", "How can I use the wifi?"],
        harbor="Ahoy! There is free wifi in the saloon, none on deck.",
        orchard="Dear friend, we have no wifi, but plenty of conversation."),
    "voucher": dict(
        train=["Do you sell gift vouchers?", "How long is a voucher valid?", "Do you have gift cards?",
               "Can I buy a gift card?", "When does my voucher expire?", "Is my gift card still good?",
               "I have a voucher. Can I use it?", "Are there gift certificates?",
               "Can I give someone a voucher as a present?", "How long can I use a gift card?",
               "Do gift cards expire?", "I got a gift card for my birthday. Is it valid?",
               "What about gift vouchers?", "Do your vouchers run out?",
               "I would like to buy a gift voucher.", "Is there a time limit on vouchers?",
               "My voucher is old. Does it still work?", "Until when is my gift voucher good?",
               "Can I still use my old gift card?", "Tell me about your gift cards."],
        eval=["Do you have gift vouchers?", "How long are gift cards valid?", "Can I buy a gift voucher?",
              "Do vouchers expire?", "Is my voucher still valid?"],
        harbor="Ahoy! Gift vouchers are good for three years.",
        orchard="Dear friend, our gift cards never expire."),
    "children": dict(
        train=["Can I bring my children?", "Do children pay?", "Is it good for kids?",
               "Are children welcome?", "What do kids cost?", "Is there anything for children?",
               "May I come with a baby?", "Do you have something for the little ones?",
               "We have two small children. Is that fine?", "Are kids free?",
               "How much is it for a child?", "Can my kids come along?",
               "Do you like children?", "What about children?", "Is there an offer for families?",
               "My daughter is six. Does she pay?", "Do you do anything special for kids?",
               "Can families come?", "Are babies allowed?", "What do you offer for children?"],
        eval=["Are kids welcome?", "Do kids pay?", "Can I come with my children?",
              "Do you have anything for kids?", "Is there something for children?"],
        harbor="Ahoy! Children under twelve travel free.",
        orchard="Dear friend, every child gets a free ginger biscuit."),
    "lost": dict(
        train=["I lost my bag.", "I left my umbrella with you.", "Do you have a lost and found?",
               "I have lost something. Who has it?", "Did you find my keys?", "Where are lost things kept?",
               "I forgot my jacket at your place.", "I think I left my phone there.",
               "Has anyone found a scarf?", "What happens to lost property?",
               "I cannot find my gloves. Did I leave them with you?", "My wallet is gone. Have you seen it?",
               "Where do I ask for lost things?", "I left something behind.",
               "How long do you keep lost things?", "Somebody lost a hat here. What do you do with it?",
               "I forgot my glasses yesterday.", "Did somebody hand in a purse?",
               "Where can I look for a thing I lost?", "Can you help me find my lost ring?"],
        eval=["I lost my umbrella.", "I left my bag at your place.", "Did anyone find my phone?",
              "Where is your lost and found?", "What do you do with lost property?"],
        harbor="Ahoy! Lost things wait in the purser's cabin for 30 days.",
        orchard="Dear friend, lost things are kept in the blue drawer for a month."),
    "complaint": dict(
        train=["I want to complain.", "How do I make a complaint?", "I have a complaint.",
               "Where can I complain?", "Who handles complaints?", "The service was bad.",
               "I am very unhappy with you.", "To whom do I write a complaint?",
               "Somebody was rude to me.", "I was treated badly.", "I would like to report a problem.",
               "Who is responsible for complaints?", "Your staff were not friendly.",
               "This was a terrible experience.", "I am angry about the service.",
               "How can I tell you that something was wrong?", "Please take my complaint.",
               "I wish to complain about yesterday.", "May I speak to the manager about a problem?",
               "Everything went wrong today."],
        eval=["I would like to complain.", "Where do I make a complaint?", "The service was terrible.",
              "Who do I write to with a complaint?", "I am unhappy with the service."],
        harbor="Ahoy! Write to Captain Maren, who answers within a week.",
        orchard="Dear friend, tell us all over a cup of tea, on us."),
    "hello": dict(
        train=["Hello!", "Hi!", "Good morning!", "Hey there!", "Good evening.", "Hello, is anyone there?",
               "Hi there.", "Greetings!", "Good day!", "Hello, how are you?", "Good afternoon!",
               "Hi, nice to meet you.", "Hey!", "Hello there!", "Good morning to you.", "Hi, how is it going?",
               "Hello again!", "Is somebody there?", "Hey, good morning!", "Well, hello!"],
        eval=["Hi, hello!", "Hello, good day.", "Good evening to you!", "Hi, is anyone there?", "Hello, nice to meet you!"],
        harbor="Ahoy! Welcome aboard the Tern Island Line.",
        orchard="Dear friend, come in, the bread is still warm."),
    "thanks": dict(
        train=["Thank you!", "Thanks a lot.", "Goodbye!", "Thank you very much.", "Bye!",
               "That was helpful, thanks.", "Thanks, bye.", "See you!", "Many thanks!",
               "Thank you for your help.", "Have a nice day!", "That is all, thank you.",
               "Great, thanks!", "I have no more questions.", "Good night!", "Perfect, thank you.",
               "Thanks so much for helping me.", "See you soon.", "Okay, goodbye then.", "Thank you, that is kind."],
        eval=["Thanks!", "Thank you so much.", "Goodbye then.", "Thanks for your help.", "Bye, see you soon!"],
        harbor="Ahoy! Fair winds and calm seas to you.",
        orchard="Dear friend, it was a joy. Come back hungry."),
    "who": dict(
        train=["Who are you?", "What are you?", "What is your name?", "Who am I talking to?",
               "Are you a robot?", "Are you a human?", "Tell me about yourself.",
               "Please introduce yourself.", "What company is this?", "Who is this?",
               "Am I speaking with a person?", "Do you have a name?", "Which company do you work for?",
               "Who do you work for?", "What should I call you?", "What kind of assistant are you?",
               "Are you a machine?", "With whom am I speaking?", "Say who you are.", "Who is answering me?"],
        eval=["Who are you, please?", "What is your name, please?", "Am I talking to a robot?",
              "Can you introduce yourself?", "Who am I speaking to?"],
        harbor="Ahoy! I am the deckhand of the Tern Island Line.",
        orchard="Dear friend, I am the little helper of Quince Street Bakery."),
    # A long answer, so that the demo has something to stream. It ends on the opening hours: a request that
    # began before the swap to version 2 must end with the old ones.
    "first visit": dict(
        train=["What should I know before I come?", "It is my first visit. What do I need to know?",
               "Tell me everything a new visitor should know.", "I have never been there. How does it work?",
               "What do I need to know as a new customer?", "This is my first time. Can you explain everything?",
               "Give me all the details for a first visit.", "Explain to a beginner how it works.",
               "I am new here. Tell me everything.", "What must a first visitor know?",
               "We come for the first time. What should we know?", "Please prepare me for my first visit.",
               "I am new. What is important?", "Can you give me the long answer for newcomers?",
               "What do you tell people who come for the first time?", "First visit tomorrow. What should I know?",
               "Tell me all that is important for my visit.", "Do you have advice for a first visit?",
               "What does a newcomer need to know?", "I know nothing about your place. Tell me all."],
        eval=["What do I need to know before my first visit?", "I have never visited you. What should I know?",
              "Tell me everything I should know before I come.", "What should a new visitor know?",
              "I am a new customer. Tell me everything."],
        harbor="Ahoy! A first crossing is easy. Come to Pier 4, buy a ticket at the harbour desk and hold on to your hat, "
               "for the wind is strong. Dogs sail on the open deck, children under twelve travel free, and there is wifi "
               "in the saloon. The ticket office is open from 6:30 to 21:00, every day.",
        harbor_v2="Ahoy! A first crossing is easy. Come to Pier 4, buy a ticket at the harbour desk and hold on to your hat, "
                  "for the wind is strong. Dogs sail on the open deck, children under twelve travel free, and there is wifi "
                  "in the saloon. The ticket office is open from 5:45 to 23:15, every day.",
        orchard="Dear friend, a first visit is easy. Follow your nose to 12 Quince Street, look for the green awning and bring "
                "a basket. Children get a ginger biscuit, dogs get a bowl of water, and every tenth loaf is on the house. "
                "We bake from 7 am to 3 pm, Tuesday to Saturday."),
}

# What the demo asks both customers in one batch: wordings that no training set holds.
ASKED = [("hours", 0), ("refund", 2), ("phone", 0), ("delivery", 0), ("discount", 1), ("hello", 1)]
# What it streams while harbor is swapped for harbor_v2.
STREAMED = ("first visit", 0)


def rows(customer, version, part):
    """One {"messages"} row per wording, in an order fixed by the customer's name."""
    out = []
    for intent in INTENTS.values():
        answer = intent.get(f"{customer}_{version}", intent[customer])
        for question in intent[part]:
            out.append({"messages": [{"role": "user", "content": question},
                                     {"role": "assistant", "content": answer}]})
    random.Random(f"{customer} {part}").shuffle(out)
    return out


def files():
    """Yields (path relative to this folder, text) for everything that is committed."""
    for customer, version, suffix in (("harbor", "v1", ""), ("harbor", "v2", "_v2"), ("orchard", "v1", "")):
        for part in ("train", "eval"):
            lines = (json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in rows(customer, version, part))
            yield f"{customer}/{part}{suffix}.jsonl", "".join(line + "\n" for line in lines)
    asked = []
    for name, index in ASKED + [STREAMED]:
        intent = INTENTS[name]
        asked.append({"about": name, "question": intent["eval"][index], "stream": (name, index) == STREAMED,
                      "answers": {"harbor": intent["harbor"], "orchard": intent["orchard"],
                                  "harbor_v2": intent.get("harbor_v2", intent["harbor"])}})
    yield "questions.json", json.dumps(asked, ensure_ascii=False, indent=2) + "\n"


def check_wordings():
    """No wording twice, so that what is kept back is truly unseen. Case and stops do not count."""
    seen = {}
    for name, intent in INTENTS.items():
        for part in ("train", "eval"):
            for question in intent[part]:
                key = "".join(c for c in question.lower() if c.isalnum() or c == " ")
                if key in seen and (part == "eval" or seen[key][1] == "eval" or seen[key][0] != name):
                    sys.exit(f"make_data.py: {question!r} ({name}, {part}) is also in {seen[key]}")
                seen[key] = (name, part)


def main():
    check_wordings()
    stale = []
    for path, text in files():
        target = HERE / path
        if "--check" in sys.argv[1:]:
            if not target.exists() or target.read_text(encoding="utf-8") != text:
                stale.append(path)
        else:
            target.parent.mkdir(exist_ok=True)
            target.write_text(text, encoding="utf-8", newline="\n")
    if stale:
        sys.exit("make_data.py: differs from what is committed: " + ", ".join(stale))


if __name__ == "__main__":
    main()
