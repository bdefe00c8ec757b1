"""The corpus on which the demo's base model is pretrained: invented English, written for this project.

A small grammar makes conversations between imaginary businesses and their customers, small talk,
definitions, sums and short descriptions. What the base must learn from it is (1) to write short
English sentences and to stop, (2) which wordings ask for the same thing. It must not learn any
customer's facts: every answer is drawn at random, so that the base knows the shape of an answer
about opening hours but not the hours. Fine-tuning then only has to fix the facts.

The notation: {a|b|c} chooses, may nest and may be empty; $name draws from SLOTS. Text from books or
the web was rejected: at two million parameters it buys noise, and its licences must be looked after.
"""
import re

BRACES = re.compile(r"\{([^{}]*)\}")
SLOT = re.compile(r"\$([a-z_0-9]+)")


def expand(rng, text):
    """One random sentence of the grammar."""
    while True:
        new = SLOT.sub(lambda m: rng.choice(SLOTS[m.group(1)]), text, count=1)
        if new == text:
            new = BRACES.sub(lambda m: rng.choice(m.group(1).split("|")), text, count=1)
        if new == text:
            break
        text = new
    text = re.sub(r" +", " ", text).strip()
    text = re.sub(r" ([.,!?;:])", r"\1", text)
    text = re.sub(r"([.!?])\.$", r"\1", text)
    return text[:1].upper() + text[1:]


def words(text):
    return [w.strip() for w in re.split(r"[,\n]", text) if w.strip()]


SLOTS = {
    "ask": ["can you tell me", "could you tell me", "do you know", "would you tell me", "may I ask", "can I ask"],
    "tell": ["please tell me", "tell me", "I would like to know", "I want to know", "I need to know", "I was wondering", "let me know"],
    "want": ["I want to", "I would like to", "I wish to", "I need to", "I have to", "I must", "we want to", "I am planning to"],
    "can": ["can I", "may I", "could I", "can we", "am I allowed to", "is it possible to", "is it fine to", "would it be okay to"],
    "have": ["do you have", "is there", "do you offer", "have you got", "do you provide"],
    "haves": ["do you have", "are there", "do you offer", "have you got", "do you sell"],
    "am": words("6, 7, 8, 9, 10, 6:30, 7:30, 8:30, 9:30, 5:45, 6:15, 7:15, 10:30, 11"),
    "pm": words("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 4:30, 5:30, 6:30, 7:30, 11, 8:15"),
    "t24": words("5:30, 6:00, 6:30, 7:00, 7:15, 8:00, 8:45, 9:00, 10:00, 16:00, 17:30, 18:00, 19:30, 20:00, 21:30, 22:00, 23:15"),
    "day": words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "days": ["every day", "Monday to Friday", "Tuesday to Sunday", "on weekdays", "all week", "Monday to Saturday",
             "Wednesday to Sunday", "seven days a week", "every day but $day", "from $day to $day", "all week except $day"],
    "month": words("January, February, March, April, May, June, July, August, September, October, November, December"),
    "digit": list("0123456789"),
    "phone": ["555-0$digit$digit$digit", "0$digit$digit $digit$digit $digit$digit"],
    "n": words("two, three, four, five, six, seven, eight, ten, twelve, fifteen, twenty, thirty, 2, 3, 4, 5, 7, 10, 14, 20, 30, 60, 90, a few, several"),
    "num": words("1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14, 16, 17, 21, 25, 30, 42, 56, 64, 78, 99, 103, 120"),
    "age": words("three, four, five, six, eight, ten, twelve, fourteen, sixteen, 6, 12, 18"),
    "span": ["$n {days|hours|minutes|weeks|months|years}", "one {day|hour|week|month|year}", "{half an|an} hour", "a {day|week|month|year}", "$n working days"],
    "percent": words("5, 10, 15, 20, 25, 30, 50"),
    "money": ["$num {euros|dollars|pounds|crowns|coins}", "one {euro|dollar|pound|crown}", "$n {euros|dollars|crowns}", "half the price", "nothing at all", "a small fee"],
    "name": words("""Anna, Ben, Clara, David, Emma, Frank, Grace, Hugo, Ida, Jack, Karen, Leo, Maria, Nora, Oscar, Paula, Quentin, Rosa, Sam,
        Tom, Ursula, Victor, Wendy, Xenia, Yusuf, Zoe, Amir, Bella, Carlos, Dora, Elif, Finn, Greta, Hannah, Ivan, June, Kofi, Lena, Mina, Nils, Olga, Pavel,
        Rita, Sven, Tara, Vera, Walter, Marta, Edith, Moritz, Agnes, Captain Hale, Mrs. Brook, Mr. Stone, Miss Finch, Doctor Reed"""),
    "place": words("""Northgate, Westbury, Elm Hill, Oakport, Ravenford, Silver Bay, Millbrook, Stonebridge, Fairhaven, Greenfield, Ashton, Redcliff,
        Lakeside, Winterton, Maple Town, Sandford, Old Harbour, Kingsley, Brookvale, Highmoor, Gull Island, Port Linden"""),
    "street": ["$num {Mill|Oak|Church|Market|River|Station|Garden|Bridge|King|Queen|Lake|Hill|Rose|Cherry|Baker|Linden|Harbour|School|Long|Elm} {Street|Road|Lane|Square|Avenue}",
               "pier $num", "{dock|gate|platform|hall|house} $num"],
    "near": ["{by|near|next to|behind|opposite|across from|in front of|beside|under} the {old|new|big|small|red|green|blue|white|} {station|church|bridge|library|park|market|school|lighthouse|town hall|museum|harbour|post office|river|tower|clock|gate|fountain}"],
    "color": words("red, blue, green, yellow, white, black, brown, grey, orange, purple, pink, silver, golden"),
    "adj": words("small, big, old, new, quiet, friendly, warm, bright, fresh, simple, fine, good, lovely, cheap, modern, famous, little, cosy, busy, honest"),
    "person": words("the manager, the owner, our team, the front desk, the office, our staff, reception, a colleague, the person at the counter, customer service, the captain, the cook, the shop"),
    "thing": words("""bag, umbrella, jacket, coat, hat, scarf, phone, wallet, purse, key, ring, book, camera, laptop, glove, watch, bottle, suitcase,
        backpack, toy, shoe, pair of glasses, bracelet, notebook, ticket, charger, tablet, sweater"""),
    "item": words("""bread, cake, coffee, tea, flowers, books, bicycles, boats, shoes, lamps, chairs, tables, tickets, cheese, honey, apples, soap, candles, toys, hats,
        tools, paint, paper, guitars, clocks, plants, carpets, mirrors, pens, knives, pies, soups, salads, biscuits, chocolates, sandwiches, jam, eggs, milk, fish"""),
    "kind": words("""bakery, cafe, restaurant, hotel, bookshop, flower shop, ferry line, bicycle shop, museum, cinema, library, gym, school, hair salon, toy shop, garage,
        pharmacy, travel agency, zoo, theatre, dentist, swimming pool, tailor, shoe shop, market stall, boat rental, campsite, bank, post office, music shop, butcher, bus company,
        tea house, vineyard, farm shop, repair shop, airline, delivery service, laundry, garden centre"""),
    "business": ["{The|} {Blue|Red|Golden|Silver|Green|Old|Little|Happy|Quiet|White|Copper|Lucky} {Lantern|Anchor|Kettle|Fox|Swan|Clock|Harbour|Orchard|Mill|Star|Bridge|Owl|Pear|Rose|Whale|Heron|Candle|Door}",
                 "$name's {Place|Shop|House|Kitchen|Garden|Workshop|Corner}", "$place {Bakery|Cafe|Ferries|Line|Hotel|Books|Flowers|Bicycles|Museum|Cinema|Garage|Pharmacy|Tours|Tailors|Bank|Express}"],
    "animal": words("dog, cat, puppy, pet, rabbit, bird, parrot, hamster"),
    "food": words("bread, apple pie, soup, rice, pasta, cheese, fish, salad, pancakes, chocolate, ginger biscuits, plum cake, tomatoes, potatoes"),
    "verb_place": words("in the yard, at the counter, in the hall, on the deck, on the terrace, upstairs, downstairs, outside, inside, at the entrance, in the garden, in a box, in the cellar, in the back room, at the desk, in the hall, on board"),
    "weather": words("sunny, rainy, windy, cold, warm, cloudy, foggy, stormy, mild, snowy"),
}

# Openings and endings of a house style; one of each goes with all the answers of one business.
OPENINGS = ["Hi! ", "Sure! ", "Of course. ", "Of course! ", "Good question. ", "Thank you for asking. ", "Thanks for your message. ",
            "Dear customer, ", "Hey! ", "Hello! ", "Certainly. ", "Good day! ", "Yes, hello. ", "Welcome! ", "No problem. ",
            "My dear, ", "Glad you ask. ", "Happy to help. ", "Well, ", "Ah! ", "Hear, hear! ", "Right away! ", "Oh, "] + [""] * 16
ENDINGS = [""] * 16 + [" Have a nice day!", " See you soon.", " Thank you.", " We look forward to your visit.", " Kind regards.", " Take care!", " Just ask if you need more."]

HEDGES = ["{That depends|It depends} on the {day|season|shop|place|case|order}. {Please ask|It is best to ask|You can ask} $person.",
          "I {am not sure|do not know that|cannot say}. {Please ask|Please check with|$person can tell you, so please ask} $person.",
          "Please {ask|contact|check with|talk to} $person about that.", "I {have no|do not have} {details|information} about that, {sorry|I am afraid}.",
          "I would have to ask $person. {Please wait a moment|One moment, please}."]


# topic -> (questions, answers). The first half is what nearly every business is asked.
TOPICS = {
    "hours": ([
        "when {are|do} you {open|close}?", "what are your {opening|business|working|office|} hours?", "what time do you {open|close}{| today| tomorrow| tonight| on $day| on $days}?",
        "are you open {today|tomorrow|on $day|on Sundays|at the weekend|on weekends|at night|now|right now|in the evening|on holidays|this $day|all day}?",
        "how {late|long|early} {are|do} you {open|stay open|close}?", "{$ask|$tell} {your opening hours|your hours|when you open|when you close|when you are open|what time you open|the opening times}.",
        "until {when|what time} {are you open|can I come|can I come in}?", "do you {open|close} {early|late|on $day|on Sundays|on weekends|at noon|at night}?", "{opening hours|your hours|hours|opening times}, please.",
        "is {anyone|anybody|someone} {there|in} {today|on $day|on Sundays|now|at the weekend}?", "which days are you {open|closed}?", "what hours do you {keep|have|work}?",
        "what {times|days} are you open?", "can I {come|come in|visit|drop by} {today|on $day|in the evening|in the morning|late|early|at noon}?", "from when {to|until} when are you open?",
        "{can|could} you {give|send} me your {opening hours|hours|opening times}?", "at {what|which} {hour|time} do you {open|close}{| the doors}?", "when do you {open|close} in the {morning|evening}?", "are you closed {today|on $day|now}?"],
        ["we are open from $am am to $pm pm, $days.", "we {open|start} at $am {am|in the morning} and close at $pm {pm|in the evening}, $days.", "the {shop|office|counter|door|desk|place} is open from $t24 to $t24, $days.",
         "our hours are $am am to $pm pm, $days.", "$days from $t24 to $t24.", "we are open $days and closed on $day.", "you can come from $am am to $pm pm, $days.", "we work from $am to $pm, $days.",
         "come $days, from $am am to $pm pm."]),
    "refund": ([
        "{can I get|do I get|may I have|could I have|I want|I would like|how do I get|how can I get|is it possible to get} {a refund|my money back|a full refund|some money back}{|, please}.",
        "what {is|are} your {refund policy|return policy|rules for refunds|refund rules|rules for returns|refund rule}?", "how do {refunds|returns} work?", "do you {give|offer|do|make} {refunds|returns}?",
        "$can {return|send back|give back|bring back} {what I bought|something|this|my order|it|an item|something I bought|a purchase}?", "what if I {am not happy|am not satisfied|do not like it|change my mind|am unhappy with it}?",
        "will you {refund me|pay me back|give me my money back}{| if I do not like it| if I change my mind}?", "{$ask|$tell} {your return policy|your refund policy|how refunds work|about refunds|about your refund rule|the rules for returns}.",
        "I am not {happy|satisfied} with {my purchase|my order|what I bought|it}. {What can I do|Can I return it|Do I get my money back}?", "I bought {something|$item} and {did not use it|do not like it|it broke}. Can I return it?",
        "how {long|many days} do I have to {return it|ask for a refund|ask for my money back|send it back}?", "please explain your {refund policy|return policy|refund rules}.", "{are refunds|is a refund|is a return} possible?", "I {would like|want} to return {something|my order|this|it}.",
        "$can {get a refund|get my money back}?", "how {do|can} I ask for {a refund|my money back}?"],
        ["{you can return|we refund|we take back} {unused goods|everything|unused tickets|your purchase|all items} within $span.", "{we give|you get} {a full refund|your money back|half the money back} {within|for} $span.",
         "refunds are {possible|paid|given} within $span{| if you have the receipt}.", "{sorry, |}we do not give refunds, but you can exchange it{| within $span}.", "if you are not happy, we {give you a new one|make it again|pay you back|send you another}.",
         "bring it back with the receipt and {we pay you back|you get your money}.", "please {send it back|bring it back} within $span."]),
    "phone": ([
        "{who|whom} {can|should|do|may|could|must} I {call|ring|phone}{| if I have a question| in an emergency| about my order| when something goes wrong| if there is a problem}?", "what is {your|the} {phone number|number|telephone number|number to call|hotline}?",
        "{can|may|could} I {call|phone|ring} {you|someone|somebody}?", "which number {can|should|do|must} I {call|ring|dial|use}?", "what number {do|should|can} I {dial|call|ring}?", "how {can|do} I {reach|contact|call|phone} you{| by phone| by telephone| on the phone}?",
        "I {want|need|would like} to {speak to|speak with|talk to|talk with} {a person|someone|somebody|a human}{|urgently|, please}.", "$have a {phone number|telephone number|hotline|number I can call}?", "{please give me|can you give me|could you give me|may I have|I need} {your|the} {phone number|number|telephone number}{|, please}.",
        "can I {talk|speak} to {someone|somebody|a person|an agent}?", "is there {anyone|someone|somebody} I can {call|phone|speak to|talk to}?", "{your|the} {phone|telephone} number, please.", "I would like to {call|phone} you.", "can {someone|somebody} call me{| back|, please}?",
        "who answers {the phone|your phone}{| at your place}?", "{$ask|$tell} {your phone number|who I can call|which number to call|the number to call}."],
        ["{please|you can|just} call {us|$name|$person|our office} {on|at} $phone.", "our {number|phone number|telephone number} is $phone.", "{ring|call|phone} {$name|$person|us|the desk} on $phone.", "you can reach {us|$name|$person} on $phone{|, $days}.",
         "$name answers the phone on $phone.", "the number is $phone.", "dial $phone and ask for $name."]),
    "delivery": ([
        "how {long|many days|much time} {does|will|would} {delivery|shipping|it|my order|the delivery} {take|need}?", "when {will|does|do} {my order|my parcel|my package|it|the delivery} {arrive|come|get here}?", "do you {deliver|ship|send things|bring things}{| to my house| to my home| to $place| here}?",
        "how {fast|quickly|soon} {do|can} you {deliver|ship|send it|bring it}?", "what {is|are} your {delivery time|delivery times|shipping times}?", "when {can|may|do} I {expect|get|have} {my order|my parcel|my delivery|my package|it}?",
        "how {long|many days} {must|do|will} I {have to wait|wait} for {my order|my delivery|it|my parcel}?", "how {soon|quickly} will {it|my order|my parcel} be here?", "can you {deliver|send|bring} {it|something|my order} to {my house|me|$place|my door}?", "{$ask|$tell} {how long delivery takes|how long shipping takes|when my order comes|when my parcel arrives|your delivery time}.",
        "if I order {now|today|tomorrow}, when {does|will} it {come|arrive}?", "is {delivery|shipping} {fast|quick|slow}?", "{do you offer|is there|do you have} {home delivery|delivery|shipping}?", "I am waiting for my {order|delivery|parcel|package}. {How long will it be|When will it come|When does it arrive}?", "how many days until it {arrives|comes}?"],
        ["{your order|your parcel|it|the delivery|your basket} {arrives|comes|will arrive|will be there} {in|within|after} $span.", "{delivery|shipping} takes $span.", "we deliver {within|in} $span.", "we {send|ship} it {at once|today|tomorrow} and it {arrives|is there} in $span.",
         "{parcels|orders|goods} {come to you|are at your door} in $span.", "you {get|have} it {in|within} $span."]),
    "discount": ([
        "{do you have|do you offer|are there|have you got|do you give} {any|some|} {discounts|special offers|deals|offers|reduced prices|promotions|coupons}{| at the moment| right now| this week| for regulars| for students| for regular customers}?", "{is there|do you have|can I get|can I have|could I get|could I have|may I have|do I get|do you offer} a {discount|cheaper price|lower price|special price|deal|promotion}{| for students| for regulars| for groups| as a regular customer| today}?",
        "do {students|seniors|groups|regular customers|regulars|members} {pay less|get a discount|save money}?", "how can I {save money|pay less}{| with you| here}?", "do you have a {loyalty card|bonus card|customer card|member card}?", "what {discounts|offers|special offers|deals} {do you have|are there|do you offer}?",
        "I am a {student|regular|member|regular customer}. Do I {get a discount|pay less}?", "any {special offers|discounts|deals|offers}{| this week| today| right now}?", "{$ask|$tell} about your {discounts|offers|special offers|deals}.", "is {there a way to pay less|anything cheaper|anything reduced|it cheaper for students}?", "can you {make it cheaper|give me a better price|give me a discount}{| for me|}?"],
        ["{students|members|groups|regulars|seniors|neighbours} {get|have} $percent percent off.", "{every|each} {tenth|fifth|second|third|sixth} {cup|ticket|item|visit|order} is {free|half price}.", "there is {a discount of|} $percent percent {off|} {on $day|in $month|for groups|for students|for members}.",
         "we {have|give} no discounts, {sorry|but our prices are fair}.", "{students|children|members|regulars} pay {half|less|half the price|$money}.", "with {the|our} card you save $percent percent."]),
    "address": ([
        "where {exactly|} {are you|is your shop|is your office|is your place|can I find you|do I find you|is it|do I have to go|should I come|must I go}?", "what is {your|the} address?", "how {do|can} I {get to you|find you|find your place|get there|reach your place}?", "where {in town|} are you {located|}?", "{in|on} which street are you?",
        "{$ask|$tell} {where you are|your address|how to find you|how to get there|where you are located|where to find you}.", "{could|can} you {give me directions|give me your address|send me your address|tell me your address|tell me where you are}?", "please {send|give|tell} me {your|the} address.", "I {cannot|could not} find {you|your place|the shop}. Where are you?",
        "at {what|which} address {can I visit you|are you}?", "what is the way to {your place|you|your shop}?", "I want to {visit you|come|come by}. Where {are you|do I go}?", "are you {in the centre|in the centre of town|near the station|in $place|downtown}?", "your address, please."],
        ["we are at $street{|, $near| in $place}.", "you {will|can} find us at $street{|, $near}.", "our {shop|office|house|place} is $near{| in $place}.", "come to $street, $near.", "we are {right|just|} $near.", "the address is $street{|, $place}."]),
    "payment": ([
        "how {can|do|may|should} {I|we} pay?", "do you {take|accept} {cards|cash|credit cards|coins|cheques|bank transfer|foreign money|a card}?", "{which|what} {payment methods|cards|payments|ways of paying} {do you|can you} {accept|take|offer}?", "can {I|we} pay {in cash|by card|by credit card|with a card|with a cheque|by phone|later|by bank transfer|online|with coins}?",
        "is it possible to pay {by card|by phone|in cash|with a card|later|by credit card}?", "do I {need|have to bring} cash?", "what ways of {paying|payment} {are there|do you have}?", "do you only {take|accept} {cash|cards}?", "is {card payment|cash|a credit card} {possible|okay|fine}?", "may I pay by {bank transfer|card|cheque|phone}?",
        "{$ask|$tell} how {I can pay|to pay|people pay}.", "I have no cash{| on me| with me}. Can I {still pay|pay by card}?", "with what can I pay?", "how do {people|customers|guests} pay {here|}?"],
        ["we {take|accept} {cards|cash|cash and cards|all cards|coins and cards|only cash|only cards|cash, cards and cheques}{|, but no cheques|, but no cards|, but no cash}.", "you can pay {in cash|by card|by phone|online|in cash or by card|by bank transfer|by card at the counter}.", "cash {only|or card|and cards are fine}{|, please}.", "please pay {in cash|by card|at the counter|in advance|when you arrive}.",
         "{all cards|cards and cash|cash} {are|is} welcome."]),
    "pets": ([
        "can I {bring|take|come with} {my|a|our} {$animal|dog}{| with me| inside|}?", "are {dogs|pets|animals|cats|small dogs|big dogs} {allowed|welcome|permitted|okay}?", "do you {allow|accept|take|let in|like} {dogs|pets|animals|cats}?", "{may|can|could} {I|we} {come|visit} with {my|our} {dog|cat|$animal}?", "{may|can|could} I bring {my|a} {dog|cat|$animal}?", "what about {pets|dogs|animals|my dog}?",
        "I have a {dog|cat|$animal}. {Can it come|Can it come along|Is that fine|Is that a problem}?", "is my {dog|cat|$animal} {welcome|allowed}?", "can {my dog|dogs|my cat|animals|pets|our puppy} {come in|come with me|come along|come inside|come|stay}?", "do you have rules for {pets|dogs|animals}?", "where can my {dog|cat|$animal} {stay|wait|sleep}?", "do you let {dogs|pets|animals} in?",
        "is it {fine|okay|allowed|possible} to bring a {dog|cat|pet}?", "may {dogs|animals|pets} come {in|inside}?", "what do I do with my {dog|cat}?", "my {dog|$animal} is with me. Is that {a problem|fine|okay}?", "{$ask|$tell} if {dogs|pets} are {allowed|welcome}."],
        ["{dogs|pets|animals|small dogs|cats and dogs} are {welcome|allowed|not allowed|fine} {$verb_place|here|if they are quiet|on a lead}.", "{dogs|pets|animals} {stay|wait|travel|must wait|can stay} {$verb_place|outside|free}.", "{yes, |}you can bring your {dog|pet}{| on a lead|, we have a blanket}.", "{sorry, |}no {dogs|pets|animals}, please.",
         "{dogs|pets} cost $money.", "your {dog|pet} is {very|always|} welcome{| $verb_place}."]),
    "cancel": ([
        "{can|may|could} {I|we} {still|} cancel {my|the|our|a} {booking|order|reservation|appointment|ticket|visit}?", "how {do|can} I cancel{| my booking| my order| a reservation| my ticket}?", "I {need|want|have|would like|must} {to|} cancel{| my booking| my order| my reservation| my ticket| my visit}.", "what if I {cannot come|cannot make it|am late|am ill}?", "until when can I cancel?",
        "is it possible to cancel{| my booking| my order}?", "how late can I cancel?", "what {are|is} {the rules for cancelling|your cancellation policy|the deadline for cancelling|the rule for cancelling}?", "can I call off my {reservation|booking|order}?", "my plans {have changed|changed}. {Can I cancel|How do I cancel|What do I do}?", "please cancel my {booking|order|reservation|ticket}.",
        "does it cost {anything|money|something} to cancel?", "can {an order|a booking|a ticket} be cancelled?", "when is it too late to cancel?", "I am {ill|sick|late|stuck} and {must|have to} cancel.", "may I {still|} cancel?", "I have to cancel, what do I do?", "{$ask|$tell} {how to cancel|how I can cancel|until when I can cancel}."],
        ["you {can|may} cancel {up to|until} {$span before|$pm the evening before|$am in the morning|the day before}.", "cancelling is free until {$span before|the day before|the evening before}.", "{please|just} {call|write to|tell} $person {and we cancel it|if you want to cancel|a day before}.", "you can cancel {any time|free of charge|for $money|for free}.", "after {that|$day|$span} {you cannot cancel|it costs $money}."]),
    "parking": ([
        "where {can|do|may|should|could} {I|we|visitors|guests|customers} {park|leave my car|park the car|leave the car}?", "{$have|have you got} {parking|a car park|a parking lot|a garage|a place for my car|parking for customers|free parking}{| nearby|}?", "can I {park|leave my car|park my car} {there|here|near you|nearby|with you|in front of the door|in front|outside}?",
        "is {parking|the car park} {free|easy|expensive|possible}?", "how much {does parking cost|is parking|is the car park}?", "are there {parking spaces|parking places|places to park}?", "I am coming by car. Where {do|can} I park?", "what about parking?", "do I {pay|have to pay} for parking?", "is it {easy|hard} to park {near you|there|here}?", "{$ask|$tell} where {to park|I can park}."],
        ["you can park {$near|$verb_place|for free $near|for $money a day}.", "{parking is|there is parking|there is room for cars|there is a car park} $near.", "park $near, {$money a day|it is free|it costs $money}.", "{sorry, |}there is no parking{| here}, {please come by bus|but there is a garage $near|only room for bicycles}.", "there is room for {$n cars|bicycles only|bicycles and cars} $verb_place."]),
    "wifi": ([
        "{do you have|is there|do you offer|have you got} {wifi|internet|free wifi|a wireless network|internet access|wifi for guests|a good connection}{| there| here|}?", "what is the {wifi|internet} password?", "{can|may|could} I {use|get|have} {the wifi|your wifi|your internet|the internet|the wifi password}?", "is {the wifi|wifi|internet} {free|fast|good|included}?", "how {do|can} I {get online|connect to the wifi|use the wifi|use the internet|log in to the wifi}?",
        "can I {go online|work online|get online|check my mail} {there|here|at your place|with your wifi}?", "does {your|the} wifi cost {anything|money|extra}?", "I need {internet|wifi}. Do you have it?", "do {guests|customers|visitors} get wifi?", "where can I get online?", "what about {wifi|internet}?", "{$ask|$tell} the wifi password."],
        ["{yes, |}there is free wifi {$verb_place|for all guests|everywhere}.", "the {wifi|password} is {$adj$num|on the receipt|on the wall|written at the counter}.", "{sorry, |}we have no {wifi|internet}{|, but many books|, sorry}.", "the wifi {is free|costs $money|works only $verb_place}.", "ask {for the password at the counter|$person for the password}."]),
    "voucher": ([
        "{do you have|do you sell|are there|have you got|do you offer} {gift vouchers|gift cards|vouchers|gift certificates}?", "how long {is|are} {a voucher|a gift card|gift cards|vouchers|my voucher} {valid|good}?", "can I {buy|get|have|give someone} a {gift card|gift voucher|voucher|gift certificate}{| as a present| for a friend|}?", "when does my {voucher|gift card} {expire|run out}?", "is my {old|} {voucher|gift card} still {valid|good}?",
        "I have a {voucher|gift card}. {Can I use it|Is it still good|How does it work}?", "do {gift cards|vouchers|your vouchers|your gift cards} {expire|run out}?", "what about {gift vouchers|gift cards|vouchers}?", "I would like to buy a {gift voucher|gift card|voucher}.", "is there a time limit on {vouchers|gift cards}?", "my {voucher|gift card} is old. {Does it still work|Is it still valid}?", "until when {is my|can I use my} {voucher|gift card|gift voucher} {good|}?",
        "how long can I use {a|my} {gift card|voucher}?", "can I still use my {old|} {gift card|voucher}?", "$tell about your {gift cards|vouchers}.", "I got a {gift card|voucher} for my birthday. {Is it valid|How do I use it}?"],
        ["{our|all|gift} {vouchers|gift cards} are {good|valid} for $span.", "{gift cards|vouchers} {never expire|expire after $span|are sold at the counter|start at $money}.", "you can {buy|get} {gift cards|vouchers} {at the counter|online|from $money}.", "{yes, |}we have {gift cards|vouchers} {from $money|at the counter|of any size}.", "your voucher is {still valid|good until $month|good for $span}."]),
    "children": ([
        "can I {bring|come with|take} {my|our|the} {children|kids|baby|son|daughter|family}?", "do {children|kids|babies} {pay|cost|pay less|need a ticket}?", "is it {good|fine|okay|safe|nice} for {kids|children|babies|families}?", "are {children|kids|babies|families} {welcome|allowed|free}?", "what do {kids|children} {cost|pay}?", "{is there|do you have|do you offer} {anything|something} for {children|kids|the little ones|babies|families}?", "may {I|we} {come|visit} with {a baby|children|kids|our kids}?",
        "we have {two|three|four} {small|} {children|kids}. Is that fine?", "how much is {it for a child|a child|a ticket for a child}?", "can {my kids|children|families|my son|my daughter} {come|come along|come with me}?", "do you like {children|kids}?", "what about {children|kids}?", "is there {an offer|a discount|a price} for {families|children|kids}?", "my {daughter|son} is $age. Does {she|he} pay?", "do you do {anything|something} special for {kids|children}?", "what do you {offer|have} for {children|kids}?"],
        ["{children|kids} {under|up to} $age {are free|travel free|pay nothing|pay half|get in for free}.", "{children|kids|families} are {always|very|} welcome{|, we have {toys|small chairs|a garden|games}}.", "{every|each} child gets a {free|small|} {biscuit|balloon|toy|apple|drink|book}.", "{children|kids} pay {half|$money|nothing}.", "there is {a play corner|a small garden|a family ticket|a box of toys} for {children|families}."]),
    "lost": ([
        "I {lost|have lost|forgot|left|think I left|think I lost} {my|a} $thing{| with you| at your place| here| there| yesterday|}.", "do you have a lost and found?", "where is {your|the} lost and found?", "I have lost {something|a $thing}. {Who has it|What do I do|Where do I ask}?", "did {you|anyone|anybody|somebody|someone} {find|hand in|see} {my|a} {$thing|keys|gloves|glasses}?", "where are lost things kept?",
        "has {anyone|someone|anybody} {found|seen} {my|a} $thing?", "what {happens to|do you do with} {lost property|lost things|things people forget}?", "I cannot find my {$thing|gloves|keys}. Did I leave {it|them} {with you|there}?", "my $thing is gone. {Have you seen it|Did you find it}?", "where do I ask for lost {things|property}?", "I left something behind.", "how long do you keep lost {things|property}?",
        "{somebody|someone} lost a $thing here. What do you do with it?", "where can I look for {a thing I lost|my $thing|lost things}?", "can you help me find my {lost|} $thing?"],
        ["lost {things|property|items} {wait|are kept|stay|are stored} $verb_place for $span.", "please ask {$person|$name} for lost {things|property}.", "we keep {lost things|everything|what we find} for $span{| $verb_place}.", "{we found|yes, we have} {a|your} $thing{| and keep it $verb_place}.", "{sorry, |}nobody found {a|your} $thing {yet|today}.", "look $verb_place, lost things are there."]),
    "complaint": ([
        "I {want|would like|wish|need} to {complain|make a complaint|report a problem}{| about yesterday| about the service| about your staff|}.", "how {do|can} I {make a complaint|complain}?", "I have a complaint{| about the service| about my order|}.", "where {can|do} I {complain|make a complaint|send a complaint}?", "{who|whom} {handles complaints|is responsible for complaints|do I write to with a complaint|can I complain to}?", "the {service|food|visit|trip|staff} was {bad|terrible|awful|very slow|rude}.",
        "I am {very|really|} {unhappy|angry|upset|disappointed} {with you|about the service|with the service|about my visit}.", "to whom do I {write|send} a complaint?", "{somebody|someone|your staff|the waiter} was {rude|not friendly|unfriendly} to me.", "I was treated badly.", "your staff {were|are} not friendly.", "this was a {terrible|bad|horrible} experience.", "please take my complaint.", "may I speak to {the manager|the owner} about a problem?", "{everything went|something went|it all went} wrong{| today| yesterday}.",
        "how can I tell you that something was wrong?"],
        ["{I am|we are} {very|so|truly|} sorry{| to hear that}. {Please write to $name|Please tell $person|We will make it right|Please call $phone}.", "please write to {$name|$person}, who answers {within|in} $span.", "{please tell us|tell $person|tell $name} what {happened|went wrong}{| and we make it right}.", "send your complaint to {$name|$person}.", "{we apologise|our apologies}. {$name|$person} {will call you|will write to you|takes care of it}.",
         "come and talk to {$name|$person} over {a soup|a coffee}."]),
    "hello": ([
        "{hello|hi|hey|good morning|good evening|good afternoon|good day|greetings|hello there|hi there|hey there|hello again|well, hello}{!|.|, how are you?|, nice to meet you.|, is anyone there?|, how is it going?|, good day.|, good morning!|, hello!}", "{good morning|good evening|good day|hello} to you{!|.}", "is {somebody|anyone|someone|anybody} {there|here}?", "{how are you|how is it going|how do you do}{| today}?", "nice to meet you{!|.}"],
        ["{hello|hi|welcome|good day|hello there|hi there}{! |. }{how can I help you|what can I do for you|how may I help|what do you need|what would you like to know}?", "welcome to {our $kind|$business|our place}.", "{nice to meet you|nice to see you|good to see you}. {what can I do for you|how can I help}?", "come in, {the $food is ready|we are open|the tea is ready|take a seat}."]),
    "thanks": ([
        "{thank you|thanks|many thanks|thank you very much|thank you so much|thanks a lot|thanks so much}{!|.|, bye.| for your help.| for helping me.|, that is kind.|, that was helpful.|, goodbye!}", "{bye|goodbye|see you|see you soon|see you later|good night|bye bye|okay, goodbye then|goodbye then|bye, see you soon|bye for now}{!|.}", "{great|perfect|wonderful|good|okay}, {thank you|thanks}{!|.}", "that {was helpful|is all|helps a lot|was kind}, {thanks|thank you}.", "have a {nice|good|lovely} {day|evening|weekend}{!|.}", "I have no more questions."],
        ["you are welcome{! |. }{have a nice day|see you soon|come back soon|take care|goodbye|}.", "{my pleasure|it was a pleasure|it was a joy|gladly|any time}. {have a nice day|see you soon|come back soon|goodbye|}.", "{goodbye|see you soon|take care|come again soon|thank you for your visit|have a good day|good night}!", "{it was nice to talk to you|we wish you a good day|safe travels|all the best to you}."]),
    "who": ([
        "{who|what} are you{|, please}?", "what is your name{|, please}?", "who am I {talking to|speaking to|talking with|speaking with}?", "{are you|am I talking to|am I speaking with|is this} {a robot|a human|a machine|a person|a real person|a computer}?", "tell me {about|something about} yourself.", "{please|can you|could you|would you} introduce yourself{|, please}.", "{what|which} company is this?", "who is this?", "do you have a name?", "{which company|who} do you work for?", "what {should|can|may} I call you?", "what kind of assistant are you?", "with whom am I {speaking|talking}?", "say who you are.", "who is {answering|answering me|writing|helping me}?"],
        ["I am {an assistant|a small assistant|a helper|a little model|a small language model|a demo model|the assistant of $business|the helper of $business}.", "I am {the assistant|the voice|the helper|a helper} of {$business|a $kind|our $kind}.", "my name is $name and I {work for|answer for|help at} {$business|a $kind|our $kind}.", "I am {a machine|a program|not a person}, but I {try to help|like to help|do my best}."]),
    # What some businesses are asked.
    "email": (["what is your {email|email address|mail address}?", "can I {write|send} {you|} an email?", "how do I write to you?", "where can I send {a letter|an email|a message}?", "do you answer emails?"],
              ["{please|just|} write to {$name|$person|us}{| and we answer within $span}.", "you can send us a {letter|message|note} to $street.", "we answer {letters|emails} within $span.", "our email is on {the receipt|our website|the door}."]),
    "website": (["do you have a website?", "where can I find you online?", "can I order {online|on your website}?", "is there an app?", "is there a website?"],
                ["you can order on our website{| $days}.", "we have a {$adj|} website with {pictures|prices|all the details}.", "{sorry, |}we have no {website|app}, {please call|please come by|just visit us}.", "there is an app for {phones|your phone}{|, and it is free}."]),
    "jobs": (["are you hiring?", "do you have {a job|work|jobs} for me?", "can I work {for|with} you?", "are there open positions?", "I am looking for {a job|work}."],
             ["we are looking for {a cook|a driver|a baker|a sailor|a helper|someone kind}{| from $month}.", "{sorry, |}we have no open {jobs|positions}{| right now}.", "please send a letter to {$name|$person}.", "yes, we need help $days."]),
    "products": (["what do you {sell|offer|have|make}?", "do you {sell|have|make} {$item|fresh $item|$color $item}?", "what is {good|new|special|fresh} today?", "what can I {buy|get|eat|order} {here|}?", "what is your best {seller|thing|product}?", "what is on the menu{| today}?"],
                 ["we {sell|make|have|offer} $item, $item and $item.", "{today|this week|on $day} we have {fresh|$adj|} $item{| and $item}.", "our $item {is|are} very {good|famous|popular}.", "{sorry, |}we {have no|are out of|do not sell} $item{| today}.", "try our {$adj|} $item."]),
    "price": (["how much {is|are|does it cost for} {it|the $item|a ticket|the $item|this}?", "what does {it|this|a ticket|the $thing} cost?", "what are your prices?", "is it {expensive|cheap}?", "how much do I {pay|have to pay}?"],
              ["{it|this|a ticket|the small one|the big one} costs $money.", "that {is|will be|makes} $money.", "prices start at $money.", "$money for {adults|everyone|one|two} and $money for {children|groups|students}."]),
    "diet": (["{haves} {vegan|vegetarian|sugar free|gluten free} {food|dishes|cakes|options}?".replace("{haves}", "$haves"), "I {am allergic to|cannot eat} {nuts|milk|eggs|fish|wheat}. What can I eat?", "is there {meat|milk|sugar|egg} in {it|the $food}?", "is the $food {vegan|vegetarian}?"],
             ["our $food {is|are} {vegan|vegetarian|without milk|without nuts|without sugar}.", "there is {milk|egg|wheat|nuts} in {the $food|it|everything}.", "{please tell|please ask} {the cook|$person} {about allergies|what is in it}.", "we {always|usually} have {a vegan soup|something without milk|fruit}."]),
    "group": (["can {we|I} come with a group{| of $n}?", "do you take groups?", "we are $n people. Is {there room|that possible}?", "is there {space|room} for $n?", "can I book for {a group|$n people}?"],
              ["groups {of up to $n|} are welcome{|, please book|, please call first}.", "we have {room|space|tables|seats} for $n people.", "for groups please {call|book|write} {a week|a day|$span} before.", "{sorry, |}we {are full|have no room for groups}{| on $day|}."]),
    "booking": (["how {do|can} I {book|reserve|make a reservation|order a ticket|get a ticket}?", "do I need {a reservation|to book|an appointment|a ticket}?", "can I {reserve|book} {a table|a seat|a room|a ticket|a place}{| for $day| for tonight| for two| for $pm pm|}?", "is there {a table|a seat|a room|a place} free{| on $day| tonight|}?", "I {want|would like} to {book|reserve} {a table|a seat|a room|a ticket}{| for $n| for $day|}."],
                ["you can book {by phone|online|at the counter|with $person}{|, $days}.", "no booking is needed, {just come|come any time}.", "your {table|seat|room|ticket} is {booked|reserved} for {$day|$pm pm|tonight}.", "please book $span {before|in advance}.", "{sorry, |}we are full on $day, but $day is free."]),
    "access": (["can I come with {a wheelchair|a pram|crutches}?", "is {it|your place|the door} accessible?", "do you have {a lift|a ramp|an elevator|steps}?", "are there stairs?"],
               ["there is a {ramp|lift|wide door} {at the entrance|$near|$verb_place}.", "there are {$n|no|only a few} steps{|, and we help you}.", "{yes, |}wheelchairs are {welcome|no problem}{| $verb_place}."]),
    "holiday": (["are you open {on holidays|at Christmas|at Easter|in $month|on New Year}?", "when {are|is} your {holidays|holiday|summer break}?", "do you close in {summer|winter|$month}?"],
                ["we are closed in $month.", "we are open on holidays from $am to $pm.", "from $month to $month we {open later|close earlier|are closed|rest}.", "our holiday is in $month."]),
    "stock": (["is {it|the $thing|the $item} {available|in stock|sold out}?", "do you have {it|this|the $thing} in {$color|my size|stock}?", "when will you get {new|more} $item?"],
              ["the {$color|$adj|} $thing is {in stock|sold out|available|on its way}.", "new $item {come|arrive} on $day.", "we have {$n|only one|none|plenty} left.", "we can order it {for you|by $day}."]),
    "repair": (["can you {repair|fix|mend} my $thing?", "my $thing is broken. Can you {repair|fix} it?", "do you do repairs?", "how long does a repair take?"],
               ["we {repair|fix|mend} {it|everything|most things} {in|within} $span.", "a repair costs $money and takes $span.", "please bring {it|your $thing} {on $day|in|to the workshop}.", "{sorry, |}we {do not do repairs|cannot fix a $thing}."]),
    "invoice": (["can I {get|have} {a receipt|an invoice|a bill}?", "I need {an invoice|a receipt}.", "my bill is wrong.", "where is my receipt?"],
                ["{your receipt|the invoice|the bill} {comes with the order|is sent by mail|is at the counter}.", "we {print|send|write} you {a receipt|an invoice}{| at once| today}.", "please show $person the {bill|receipt}."]),
    "history": (["how old is {your company|the shop|this place}?", "when {were you founded|did you start|did you open first}?", "who is the owner?", "who {started|founded|runs} {it|this place|the shop}?", "tell me {about|something about} your {history|company}."],
                ["we {opened|started} $n years ago.", "$name {runs|owns|founded|started} {the $kind|it|this place}{| $n years ago}.", "the {shop|house|company} is $n years old.", "it {began|started} as a {$adj|} $kind in $place."]),
    "language": (["do you speak {English|German|French|Spanish|Italian|Chinese}?", "which languages do you speak?", "can I talk to you in {English|French|German}?"],
                 ["we speak {English|German|French|Spanish} and {English|German|French|Italian}.", "only English, {sorry|I am afraid}.", "$name speaks {English|French|German|Spanish}."]),
    "transport": (["how do I {come|get there} by {bus|train|bike|boat}?", "which bus {goes|comes} to you?", "is there a {bus|train|station} nearby?"],
                  ["take bus $num to {$place|the last stop|the market}.", "the {bus|train|tram} stops $near.", "{walk|go} from the station, it takes $span.", "there is a boat every {hour|$n minutes}."]),
    "toilet": (["where {is|are} the {toilet|toilets|bathroom|restroom}?", "do you have {toilets|a toilet|a bathroom}?", "may I use the {toilet|bathroom}?"],
               ["the {toilets are|toilet is|bathroom is} $verb_place.", "it is {$verb_place|behind the $color door}.", "ask $person for the key."]),
    "weather_trip": (["what happens if it {rains|snows|is stormy}?", "do you {go|sail|open} in {bad weather|the rain|a storm}?", "what if the weather is bad?"],
                     ["we {stay open|wait|go anyway|close|stay at home} when it is $weather.", "in {bad weather|a storm|the rain} we {close|wait|go inside|give you a new date}.", "you get {a new ticket|your money back|a hot tea} if it is {stormy|too $weather}."]),
    "luggage": (["how much luggage can I {take|bring}?", "can I {take|bring} my {bike|suitcase|bicycle|surfboard}?", "where do I leave my {bags|luggage|coat}?"],
                ["you can {take|bring} $n {bags|suitcases}.", "{bikes|bicycles|bags|suitcases} {are free|cost $money|go $verb_place|travel $verb_place}.", "leave your {bags|coat|luggage} $verb_place."]),
    "warranty": (["is there a {warranty|guarantee}?", "how long is the {warranty|guarantee}?", "what if it breaks?"],
                 ["the {warranty|guarantee} is $span.", "if it breaks within $span, we {repair it|replace it|give you a new one}.", "we {repair|replace} it for {free|$money}."]),
    "account": (["I forgot my password.", "how do I {log in|make an account|change my password}?", "I cannot log in.", "delete my account, please."],
                ["{click|press} on the {$color|} button {and follow the steps|below}.", "we {send|sent} you a new password{| by mail}.", "please {try again|wait $span|use another password}.", "your account is {ready|deleted|open again}."]),
    "status": (["where is my {order|parcel|package}?", "what is the status of my order?", "has my order been sent?", "can I track my {order|parcel}?"],
               ["your {order|parcel} is {on its way|in $place|being packed|ready}.", "it {left|was sent} {today|yesterday|on $day}{| and arrives on $day}.", "please {give me|tell me} your order number.", "your order number is $num$num."]),
    "change": (["can I change my {order|booking|address|ticket}?", "I want to change my {order|booking|seat}.", "can I {come|move it} to {$day|another day}?", "I made a mistake in my order."],
               ["you can change it {until $day|within $span|for $money|for free}.", "your {order|booking|ticket} is changed.", "we {moved|changed} it to $day.", "please tell me the new {date|address|day}."]),
    "custom": (["can you make {a cake|a $thing|something} {for me|for a birthday|for a wedding}?", "do you take special orders?", "can I order {a $color $thing|something special}?", "do you cater for {parties|weddings}?"],
               ["we {make|bake|build} {it|anything|special orders} {within|in} $span.", "for {weddings|birthdays|parties} please {ask|order} $span before.", "{yes, |}tell us the {colour|size|day} and we make it.", "a special order costs $money more."]),
    "recommend": (["what do you recommend?", "what {should|can} I {buy|try|give|take} {for my mother|for a friend|for a child|today|}?", "can you recommend {something|a present|a dish}?", "I need a present."],
                  ["I {recommend|would take|like} the {$adj|$color|} {$thing|$food}.", "try the $food, it is {very good|fresh|my favourite}.", "take {flowers|a book|a candle|a cake|some tea} {for your {mother|friend|sister|father}|}.", "our {guests|customers} like the $food."]),
}

SMALLTALK = [
    ("{what is your|do you have a} favourite {colour|animal|food|day|season}?", "I {like|love} {$color|the colour $color|$food|${x}|spring|summer|autumn|winter|$day}{| best| very much}.".replace("${x}", "cats")),
    ("how {is|will be} the weather{| today| tomorrow}?", "it {is|will be} $weather{|, take a coat|, enjoy it| and $weather}."),
    ("tell me {a joke|something funny}.", "{why did the $animal cross the road? To get some $food|what is $color and flies? A $color bird|I know only one joke, and it is too long}."),
    ("tell me {a story|a short story}.", "once there was a $adj $animal in $place. it {found|lost|wanted} a $color $thing. {in the end|then|one day} $name {gave it back|helped|laughed}, and all was well."),
    ("{are you|do you feel} {happy|tired|sad|hungry}{| today}?", "I am {fine|happy|never tired|always ready|only a program}, {thank you|thanks for asking}."),
    ("what are you doing{| today| now}?", "I am {answering questions|waiting for you|talking to you|helping people}."),
    ("{I am|I feel} {sad|tired|bored|hungry|happy|ill|lonely}{| today}.", "{I am sorry to hear that|that is good to hear|I understand|oh dear}. {have a cup of tea|take a rest|take a walk|eat some $food|tell me more}."),
    ("my name is $name.", "nice to meet you, {my friend|dear guest|and welcome}."),
    ("what time is it?", "I {have no clock|do not know|cannot see a clock}, {sorry|I am sorry}."),
    ("do you like {$food|music|books|the sea|$item}?", "{yes, very much|yes, I do|no, not really|a little}."),
    ("can you {sing|dance|cook|swim|drive|count|read}?", "{no, I can only write|I can try|I am better at answering questions|a little}."),
    ("{where do you live|where are you from}?", "I live in {a computer|a small machine|$place}."),
    ("how old are you?", "I am {very young|quite new|$n {days|weeks|months} old}."),
    ("I {love|like} {you|this place|your shop|your $food}!", "{that is kind|thank you|you are very kind|we love to hear that}."),
    ("say {something|a word|hello}.", "{hello|tea|good day|something|sunshine}."),
    ("what {can you do|do you know|can I ask you}?", "I can answer {short|simple|small} questions{| about shops| about opening hours and prices}."),
    ("yes.", "{good|fine|very well}. {what else can I do|anything else|how can I help}?"), ("no.", "{all right|fine|no problem}. {just ask if you need something|have a nice day}."),
    ("{okay|fine|good|I see}.", "{is there anything else|can I help with something else|anything else}?"),
]

DEFINITIONS = {k.strip(): v.strip() for k, v in (line.split("=") for line in """
ferry = a boat that carries people and cars across water
bakery = a shop where bread and cakes are made
lighthouse = a tower with a bright light that guides ships
harbour = a safe place for ships near the shore
island = land with water all around it
bridge = a way over a river or a road
library = a place where you can borrow books
museum = a house full of old and beautiful things
market = a place where people buy and sell things
ticket = a piece of paper that lets you travel or enter
refund = money that you get back
discount = a lower price
voucher = a paper that you can use instead of money
receipt = a paper that shows what you have paid
parcel = a box that is sent by mail
passenger = a person who travels in a car, bus or ship
captain = the person who leads a ship
baker = a person who makes bread
sailor = a person who works on a ship
teacher = a person who helps others learn
doctor = a person who helps sick people
farmer = a person who grows food
oven = a hot box for baking
bread = a food made of flour and water
pear = a soft green fruit that smells sweet
apple = a round fruit that grows on trees
honey = a sweet food made by bees
cheese = a food made from milk
tea = a hot drink made from leaves
coffee = a dark drink made from roasted beans
river = water that flows to the sea
sea = a very large body of salt water
mountain = a very high hill
forest = a place with many trees
garden = a place where flowers and vegetables grow
winter = the coldest time of the year
summer = the warmest time of the year
spring = the time when flowers begin to grow
autumn = the time when leaves fall
morning = the first part of the day
evening = the last part of the day
umbrella = a thing that keeps the rain off you
key = a small thing that opens a door
clock = a machine that shows the time
window = a hole in the wall with glass in it
door = the way into a room or a house
chair = a thing to sit on
table = a thing with a flat top and legs
lamp = a thing that gives light
candle = a stick of wax that burns and gives light
book = many pages with words
letter = a message on paper
bicycle = a machine with two wheels that you ride
train = a long row of cars on rails
bus = a large car for many people
car = a machine with four wheels and an engine
boat = a small ship
dog = a friendly animal that likes to walk with people
cat = a small animal that catches mice
bird = an animal with wings
gull = a white bird that lives by the sea
parrot = a colourful bird that can repeat words
fish = an animal that lives in water
horse = a large animal that people ride
cow = a large animal that gives milk
bee = a small insect that makes honey
tree = a tall plant with wood and leaves
flower = the colourful part of a plant
rain = water that falls from the sky
snow = soft white ice that falls from the sky
wind = air that moves
cloud = a grey or white thing in the sky made of tiny drops
sun = the star that gives us light and warmth
moon = the bright round thing in the night sky
star = a small light in the night sky
king = a man who rules a country
money = what you use to pay for things
bank = a place that keeps money
school = a place where children learn
hospital = a place where sick people get help
hotel = a house where travellers sleep
restaurant = a place where you can eat
kitchen = a room where food is cooked
bed = a soft thing to sleep on
hat = a thing that you wear on your head
coat = a warm thing that you wear outside
shoe = a thing that you wear on your foot
glove = a thing that keeps your hand warm
music = sounds that are nice to hear
song = music with words
friend = a person you like and trust
neighbour = a person who lives next door
customer = a person who buys things
guest = a person who visits you
computer = a machine that works with numbers and words
adapter = a small part that makes a big thing fit a new use
password = a secret word that lets you in
internet = a net of computers all over the world
question = a sentence that wants an answer
answer = what you say after a question
""".strip().splitlines())}

PAIRS = {k: v for k, v in (p.split("/") for p in words("""big/small, hot/cold, old/new, fast/slow, up/down, light/dark, open/closed, happy/sad, rich/poor, day/night,
    early/late, near/far, long/short, high/low, full/empty, hard/soft, clean/dirty, loud/quiet, wet/dry, good/bad, cheap/expensive, left/right, black/white, first/last, true/false"""))}
SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"]
WEEK = SLOTS["day"]

DESCRIPTIONS = [
    "$business is a $adj $kind in $place. {it|the $kind} is open from $am am to $pm pm, $days. {people come for|it is known for|visitors like} the $item and the $item.",
    "{on $day|one $weather morning|in $month}, $name went to the $kind $near. $name wanted to buy $item, but {it was closed|there was only $item|it was too expensive}. so $name {went home|bought $item|came back on $day}.",
    "the $kind of $name {is|was} $near. {inside|there} {it smells of|you see|you find} $food and $item. {children|students|old people|sailors} {love it|come every $day|pay half}.",
    "$name and $name {work|worked} in a $kind. $name {makes|sells|paints|carries} $item, and $name {answers the phone|counts the money|talks to the guests}. {in the evening|at $pm pm|on $day} they close the door.",
    "dear $name, thank you for your {letter|order|visit|message}. your $item will arrive {on $day|in $span}. {kind regards|best wishes|yours}, $name, $business.",
    "it was a $weather day in $place. a $color $animal sat $near. {it was waiting|it looked|it slept} for $span. then $name came with {some|fresh|warm} $food.",
    "notice: {the $kind|$business} is {closed|open} {on $day|in $month|from $t24 to $t24}. {questions|please call}: $phone.",
    "$n {visitors|guests|customers|passengers} came to $place on $day. they {saw|liked|bought} the $adj $kind and {ate|bought} $food. the weather was $weather.",
]

BEFORE = ["hi, ", "hello, ", "hello! ", "hi! ", "excuse me, ", "sorry, ", "good morning, ", "quick question: ", "one question: ", "please, ", "hey, ", "good day, ", "I have a question: ", "good evening, ", "so, ", "and "]
AFTER = [" Thank you.", " Thanks!", " Please.", " Thanks in advance.", " Please help.", " I am in a hurry."]


def question(rng, topic):
    text = expand(rng, rng.choice(TOPICS[topic][0]))
    first = text.split(" ", 1)[0].strip(".,!?").lower()
    if first in ("can", "could", "do", "would", "may", "are", "is", "will", "how", "what", "when", "where", "who", "which") and text.endswith("."):
        text = text[:-1] + "?"
    if rng.random() < 0.14:
        before = rng.choice(BEFORE)
        keep = text.startswith("I ") or before.endswith("! ")
        text = before + (text if keep else text[0].lower() + text[1:])
        text = text[0].upper() + text[1:]
    if rng.random() < 0.06:
        text += rng.choice(AFTER)
    slip = rng.random()
    if slip < 0.05:
        text = text.lower()
    elif slip < 0.09:
        text = text.rstrip("?.!")
    return text


def answer(rng, topic, style):
    opening, ending = style
    hedge = topic not in ("hello", "thanks", "who") and rng.random() < 0.07
    text = expand(rng, rng.choice(HEDGES if hedge else TOPICS[topic][1]))
    if not hedge and topic not in ("hello", "thanks", "who") and rng.random() < 0.12:
        text += " " + expand(rng, rng.choice(TOPICS[topic][1]))
    if opening:
        comma = opening.rstrip().endswith(",") and not text.startswith(("I ", "Mr", "Mrs"))
        name = text.split(" ", 1)[0].strip(".,") in SLOTS["name"] + SLOTS["day"] + SLOTS["place"]
        text = opening + (text[0].lower() + text[1:] if comma and not name else text)
    if ending and not text.endswith("?"):
        text += ending
    # Sentences inside the grammar are written in lower case; here they get their capitals.
    return re.sub(r"([.!?] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


def style(rng):
    return rng.choice(OPENINGS), rng.choice(ENDINGS)


def system(rng):
    return expand(rng, rng.choice(["you are the assistant of $business, a $kind.", "you {answer|help} the {customers|guests} of $business.", "you are a {helpful|friendly|polite|short} assistant.", "you work for $business in $place.",
                                   "answer {briefly|in one sentence|politely|kindly}.", "you are $name, who works at {a|our} $kind."]))


NAMES = list(TOPICS)
COMMON = NAMES[:NAMES.index("who") + 1]


def support(rng):
    """A customer asks a business one to four things."""
    chosen = style(rng)
    turns = []
    if rng.random() < 0.25:
        turns.append(("system", system(rng)))
    n = rng.choice([1] * 15 + [2, 2, 3, 4])
    topics = [rng.choice(COMMON if rng.random() < 0.72 else NAMES) for _ in range(n)]
    if n > 2:
        topics[0], topics[-1] = rng.choice(["hello", topics[0]]), rng.choice(["thanks", topics[-1]])
    for topic in topics:
        turns += [("user", question(rng, topic)), ("assistant", answer(rng, topic, chosen))]
    return turns


def knowledge(rng):
    """Definitions, opposites, small sums, days of the week."""
    kind = rng.random()
    if kind < 0.6:
        word, meaning = rng.choice(list(DEFINITIONS.items()))
        article = "an" if word[0] in "aeiou" else "a"
        if word in ("bread", "honey", "cheese", "tea", "coffee", "rain", "snow", "wind", "money", "music") or meaning.startswith("what you"):
            article = ""
        q = rng.choice([f"what is {article} {word}?", f"explain the word {word}.", f"what does {word} mean?", f"can you explain what {article} {word} is?", f"define {word}.", f"do you know what {article} {word} is?"])
        a = rng.choice([f"{article} {word} is {meaning}.", f"{article} {word} is {meaning}.", f"it is {meaning}.", f"{meaning}."])
    elif kind < 0.75:
        one, two = rng.choice(list(PAIRS.items()))
        if rng.random() < 0.5:
            one, two = two, one
        q = rng.choice([f"what is the opposite of {one}?", f"name the opposite of {one}.", f"{one} is the opposite of what?"])
        a = rng.choice([f"the opposite of {one} is {two}.", f"{two}.", f"{one} and {two} are opposites."])
    elif kind < 0.9:
        x, y = rng.randrange(10), rng.randrange(10)
        if rng.random() < 0.5:
            q, a = rng.choice([f"what is {x} + {y}?", f"how much is {x} plus {y}?", f"{x} + {y} = ?"]), rng.choice([f"{x} + {y} is {x + y}.", f"{x + y}."])
        else:
            q, a = rng.choice([f"what is {SMALL[x]} plus {SMALL[y]}?", f"how much is {SMALL[x]} and {SMALL[y]}?"]), f"{SMALL[x]} and {SMALL[y]} is {SMALL[x + y]}."
    else:
        d = rng.randrange(7)
        q, a = rng.choice([(f"which day comes after {WEEK[d]}?", f"{WEEK[(d + 1) % 7]}."), (f"what day is before {WEEK[d]}?", f"{WEEK[(d + 6) % 7]}."),
                           (f"today is {WEEK[d]}. What is tomorrow?", f"tomorrow is {WEEK[(d + 1) % 7]}.")])
    return [("user", expand(rng, q)), ("assistant", expand(rng, a))]


def smalltalk(rng):
    turns = []
    if rng.random() < 0.2:
        turns.append(("system", system(rng)))
    for _ in range(rng.choice([1, 1, 1, 2])):
        q, a = rng.choice(SMALLTALK)
        reply = re.sub(r"([.!?] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), expand(rng, a))
        turns += [("user", expand(rng, q)), ("assistant", reply)]
    return turns


def description(rng):
    """Plain text, no turns."""
    text = " ".join(expand(rng, rng.choice(DESCRIPTIONS)) for _ in range(rng.choice([1, 1, 2])))
    return re.sub(r"([.!?] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


def document(rng):
    """One training document: a list of (role, content), or a string of plain text."""
    kind = rng.random()
    if kind < 0.74:
        return support(rng)
    if kind < 0.84:
        return knowledge(rng)
    if kind < 0.92:
        return smalltalk(rng)
    return description(rng)
