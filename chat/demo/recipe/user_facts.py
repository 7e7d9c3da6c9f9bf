"""Facts that people tell of themselves and ask for later, for training and test conversations. Only constants.

All written for this project. What begins with `held_` is never trained.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One kind of fact; all fields but `reply`, `answer` and `invented` are lists parted by `|`, "{}" is the value.
    `reply` is the short answer when it is told, `answer` the one when it is asked for; `invented`: made-up names
    will do as values too."""

    statements: str
    reply: str
    questions: str
    answer: str
    values: str
    held_values: str
    held_questions: str
    invented: bool = False


_PEOPLE = (
    "Anna|Ben|Clara|David|Emma|Felix|Grace|Henry|Ida|Jack|Kate|Leo|Mia|Noah|Olivia|Paul|Quinn|Rosa|Sam|Tina|Uma|"
    "Victor|Wendy|Yusuf|Zoe|Ali|Bruno|Chloe|Diego|Elena|Fatima|George|Hana|Ivan|Julia|Kofi|Lucy|Marco|Nina|Omar|"
    "Priya|Ravi|Sara|Tom|Vera|Will|Aisha|Boris|Carmen|Daniel|Peter|Laura|Simon|Alice|Frank|Maria|John|Susan|Linda|"
    "Robert|Karen|Mark|Julie|Chris|Sofia|Lukas|Jonas|Ella|Nora|Max|Theo|Ruth|Walter|Irene"
)
_DAYS = "Monday|Tuesday|Wednesday|Thursday|Saturday"
_FOODS = (
    "pizza|sushi|pasta|curry|soup|tacos|rice|pancakes|salad|lasagna|burgers|dumplings|noodles|fish and chips|"
    "fried chicken|risotto|tomato soup|omelettes|meatballs|hot dogs|potato salad|goulash|waffles|mashed potatoes|"
    "vegetable stew|falafel|burritos|cheesecake|apple pie|spaghetti|gnocchi|kebab|roast beef|pumpkin soup|"
    "grilled fish|fried rice|onion soup|lentil soup|sandwiches|porridge"
)
_BOOKS = (
    "Moby Dick|Jane Eyre|Dracula|Frankenstein|Robin Hood|Treasure Island|Peter Pan|Black Beauty|Little Women|"
    "Great Expectations|Oliver Twist|The Secret Garden|The Jungle Book|Gulliver's Travels|Robinson Crusoe|"
    "Alice in Wonderland|The Time Machine|Around the World in Eighty Days|Don Quixote|War and Peace|Ivanhoe|"
    "Heidi|The Wizard of Oz|Sherlock Holmes|The Three Musketeers|The Call of the Wild|White Fang|"
    "Anne of Green Gables"
)

FACTS: dict[str, Fact] = {
    "name": Fact(
        statements="My name is {}.|I'm {}.|Hi, I am {}!|Call me {}.|Hello, my name is {}.|hi im {}|{} is my name.|"
        "I am called {}.|my name's {}|You can call me {}.|People call me {}.|Hey, {} here!",
        reply="Nice to meet you, {}! How can I help you today?",
        questions="What is my name?|Do you remember my name?|what's my name?|Who am I?|Tell me my name.|"
        "Can you say my name?|Do you know my name?|What am I called?|My name is what?|Do you still know who I am?",
        answer="Your name is {}.",
        values=_PEOPLE,
        held_values="Greta|Hugo|Mateo|Leila|Freya|Kenji|Amara|Stefan|Pilar|Dmitri|Naomi",
        held_questions="By the way, what did I say my name was?|Which name did I give you?|"
        "How did I introduce myself?",
        invented=True,
    ),
    "city": Fact(
        statements="I live in {}.|My home is in {}.|I am from {}.|I come from {}.|My city is {}.|i live in {}|"
        "My house is in {}.|I moved to {}.|{} is my home town.|We live in {}.",
        reply="{} sounds like a nice place to live.",
        questions="Where do I live?|Which city am I from?|Where is my home?|Do you remember where I live?|"
        "What is my home town?|where am i from?|Tell me where I live.|Which city do I live in?|"
        "What city do I come from?",
        answer="You live in {}.",
        values="Lisbon|Boston|Oslo|Nairobi|Vienna|Dublin|Chicago|Berlin|Lima|Prague|Toronto|Madrid|Cairo|Seattle|"
        "Milan|"
        "Hamburg|Paris|London|Glasgow|Naples|Athens|Mumbai|Tokyo|Sydney|Dallas|Miami|Munich|Geneva|Krakow|Bergen|"
        "Manila|Lagos|Montreal|Rotterdam|Leeds|Santiago|Austin|Portland|Osaka|Zurich|New York|San Diego|Cape Town",
        held_values="Helsinki|Denver|Porto|Kyoto",
        held_questions="In which city did I say I live?|What place did I tell you I call home?|"
        "Which town did I mention?",
        invented=True,
    ),
    "color": Fact(
        statements="My favorite color is {}.|I love the color {}.|I like {} most of all colors.|"
        "{} is my favorite color.|"
        "my favorite color is {}|The color I like most is {}.|Of all colors I prefer {}.|I paint everything {}, "
        "it is my favorite color.|Nothing is as beautiful as {}, my favorite color.",
        reply="{} is a lovely color.",
        questions="What is my favorite color?|Which color do I like?|What color do I love?|"
        "Do you know my favorite color?|"
        "what's my favorite color?|Which color do I like most?|Tell me my favorite color.|What color do I prefer?|"
        "Do you remember which color I love?",
        answer="Your favorite color is {}.",
        values="red|blue|green|yellow|purple|orange|pink|brown|black|white|silver|beige|crimson|violet|lavender|"
        "navy blue|dark green|light blue|maroon|olive green|teal|magenta|indigo|ivory|cream|mint green|sky blue|"
        "coral|peach|bronze|copper|lilac|dark red|pale yellow|emerald green|burgundy|khaki|cyan|scarlet|plum",
        held_values="turquoise|gold|gray",
        held_questions="Which color did I tell you I like best?|What did I say is the color I love above all?|"
        "Can you recall the color I mentioned?",
    ),
    "dog": Fact(
        statements="My dog is called {}.|I have a dog named {}.|My dog's name is {}.|We have a dog, {}.|"
        "i have a dog called {}|I walk my dog {} every day.|{} is my dog.|This is my dog {}.",
        reply="{} is a great name for a dog.",
        questions="What is my dog's name?|What is my dog called?|Do you remember the name of my dog?|"
        "Who is my dog?|"
        "what's the name of my dog?|Tell me my dog's name.|Do you know what my dog is called?",
        answer="Your dog's name is {}.",
        values="Max|Bella|Rocky|Luna|Charlie|Daisy|Buddy|Molly|Rex|Coco|Toby|Ruby|Lola|Bruno|Lucky|Sandy|Milo|"
        "Teddy|"
        "Bailey|Duke|Zeus|Rusty|Fido|Spot|Princess|Jasper|Archie|Rufus|Snoopy|Bear",
        held_values="Biscuit|Shadow|Pepper|Ziggy",
        held_questions="What did I say my dog is called?|Which name did I tell you my dog has?|"
        "If you called my dog, what would you shout?",
        invented=True,
    ),
    "cat": Fact(
        statements="My cat is called {}.|I have a cat named {}.|My cat's name is {}.|We have a cat, {}.|"
        "i have a cat called {}|My cat {} sleeps all day.|{} is my cat.|This is my cat {}.",
        reply="{} is a sweet name for a cat.",
        questions="What is my cat's name?|What is my cat called?|Do you remember the name of my cat?|"
        "Who is my cat?|"
        "what's the name of my cat?|Tell me my cat's name.|Do you know what my cat is called?",
        answer="Your cat's name is {}.",
        values="Tiger|Kitty|Simba|Nala|Felix|Oreo|Smokey|Misty|Salem|Garfield|Minka|Mimi|Whiskers|Snowy|Lily|Cleo|"
        "Socks|Patches|Leo|Loki|Angel|Tinker|Boots|Sooty|Fluffy|Muffin|Cookie|Peanut|Olive|Honey",
        held_values="Domino|Marble|Pixel",
        held_questions="What did I say my cat is called?|Which name did I tell you my cat has?|"
        "Can you recall how I call my cat?",
        invented=True,
    ),
    "food": Fact(
        statements="My favorite food is {}.|I love {}.|I like to eat {} most.|My favorite dish is {}.|"
        "my favorite food is {}|I could eat {} every day.|Nothing tastes better than {}.|"
        "The food I like most is {}.",
        reply="{} is a tasty choice.",
        questions="What is my favorite food?|What do I like to eat?|Which dish do I like most?|"
        "Do you remember my favorite food?|what's my favorite dish?|Tell me my favorite food.|What food do I love?|"
        "Which food do I like?",
        answer="Your favorite food is {}.",
        values=_FOODS,
        held_values="ramen|paella|chili",
        held_questions="Which food did I say I like best?|What meal would make me happy, going by what I said?|"
        "Can you recall the dish I mentioned?",
    ),
    "job": Fact(
        statements="I work as a {}.|I am a {}.|My job is being a {}.|I earn my living as a {}.|i'm a {}|"
        "I have a job as a {}.|I have been a {} for years.|I am a {} by profession.|I make my money as a {}.",
        reply="Being a {} must be interesting work.",
        questions="What is my job?|What do I do for a living?|What do I work as?|Do you remember my job?|"
        "what's my profession?|What work do I do?|Tell me my job.|Which job do I have?|How do I earn my money?",
        answer="You work as a {}.",
        values="teacher|nurse|farmer|baker|lawyer|painter|driver|plumber|pilot|gardener|writer|cook|carpenter|"
        "doctor|"
        "waiter|barber|butcher|chef|coach|dancer|designer|detective|fisherman|florist|guard|hairdresser|judge|"
        "journalist|locksmith|mechanic|miner|musician|photographer|programmer|sailor|scientist|secretary|shepherd|"
        "singer|soldier|student|surgeon|taxi driver|translator|vet|welder|postman|potter|policeman|firefighter|"
        "cashier|"
        "banker|blacksmith|cleaner|clerk|bus driver|truck driver|roofer|receptionist|reporter|tour guide|"
        "watchmaker",
        held_values="dentist|librarian|tailor",
        held_questions="What did I tell you my job is?|Which profession did I mention?|"
        "What did I say I do at work?",
    ),
    "age": Fact(
        statements="I am {} years old.|I'm {} years old.|My age is {}.|I turned {} last week.|i am {}|"
        "I just had my birthday and I am {} now.|I have been {} since spring.",
        reply="{} is a good age.",
        questions="How old am I?|What is my age?|Do you remember how old I am?|how old am i|Tell me my age.|"
        "Do you know my age?",
        answer="You are {} years old.",
        values="|".join(str(years) for years in range(9, 90) if years not in (23, 37, 64)),
        held_values="23|37|64",
        held_questions="How many years old did I say I am?|Which age did I tell you I have?|Can you recall my age?",
    ),
    "hobby": Fact(
        statements="My hobby is {}.|I love {} in my free time.|In my free time I enjoy {}.|I spend my weekends {}.|"
        "my hobby is {}|{} is my hobby.|After work I like {}.|What I enjoy most is {}.",
        reply="{} is a fine hobby.",
        questions="What is my hobby?|What do I do in my free time?|Do you remember my hobby?|what's my hobby?|"
        "Tell me my hobby.|What do I enjoy on weekends?|Which hobby do I have?",
        answer="Your hobby is {}.",
        values="painting|fishing|hiking|dancing|singing|cooking|baking|sewing|reading|gardening|swimming|cycling|"
        "climbing|camping|skating|writing poems|playing cards|bird watching|collecting stamps|photography|"
        "playing video games|solving puzzles|drawing|yoga|sailing|woodworking|horse riding|surfing|rowing|skiing",
        held_values="knitting|juggling|pottery",
        held_questions="Which hobby did I tell you about?|What did I say I do for fun?|"
        "How do I spend my spare time, as I told you?",
    ),
    "sister": Fact(
        statements="My sister is called {}.|I have a sister named {}.|My sister's name is {}.|{} is my sister.|"
        "my sister is {}|I visited my sister {} today.|This is my sister {}.",
        reply="{} is a beautiful name. Do you see your sister often?",
        questions="What is my sister's name?|What is my sister called?|Do you remember the name of my sister?|"
        "Who is my sister?|what's the name of my sister?|Tell me my sister's name.",
        answer="Your sister's name is {}.",
        values=_PEOPLE,
        held_values="Ingrid|Dalia|Esther",
        held_questions="What did I say my sister is called?|Which name does my sister have, as I told you?|"
        "Can you recall the name of my sister?",
        invented=True,
    ),
    "brother": Fact(
        statements="My brother is called {}.|I have a brother named {}.|My brother's name is {}.|{} is my brother.|"
        "my brother is {}|I had dinner with my brother {}.|This is my brother {}.",
        reply="{} is a good name. Is your brother like you?",
        questions="What is my brother's name?|What is my brother called?|Do you remember the name of my brother?|"
        "Who is my brother?|what's the name of my brother?|Tell me my brother's name.",
        answer="Your brother's name is {}.",
        values=_PEOPLE,
        held_values="Arthur|Rashid|Viktor",
        held_questions="What did I say my brother is called?|Which name does my brother have, as I told you?|"
        "Can you recall the name of my brother?",
        invented=True,
    ),
    "friend": Fact(
        statements="My best friend is {}.|My best friend is called {}.|{} is my best friend.|"
        "I have a best friend, {}.|"
        "my best friend's name is {}|I have known my best friend {} for years.",
        reply="It is good to have a friend like {}.",
        questions="Who is my best friend?|What is my best friend's name?|Do you remember my best friend?|"
        "what's the name of my best friend?|Tell me who my best friend is.|What is my best friend called?",
        answer="Your best friend is {}.",
        values=_PEOPLE,
        held_values="Ursula|Tobias|Meera",
        held_questions="Who did I say is my best friend?|Which friend did I tell you about?|"
        "What was the name of that best friend I mentioned?",
        invented=True,
    ),
    "drink": Fact(
        statements="My favorite drink is {}.|I like to drink {} most.|I drink {} every morning.|"
        "{} is my favorite drink.|"
        "my favorite drink is {}|The drink I like most is {}.",
        reply="{} is a good thing to drink.",
        questions="What is my favorite drink?|What do I like to drink?|Do you remember my favorite drink?|"
        "what's my favorite drink?|Tell me my favorite drink.|Which drink do I like most?",
        answer="Your favorite drink is {}.",
        values="coffee|green tea|black tea|water|milk|apple juice|orange juice|hot chocolate|beer|red wine|"
        "white wine|"
        "lemon tea|mineral water|tomato juice|iced coffee|iced tea|ginger tea|soy milk|grape juice|cherry juice|"
        "mint tea|espresso|cocoa|cola|root beer|carrot juice",
        held_values="lemonade|cider|kefir",
        held_questions="Which drink did I say I like best?|What did I tell you I love to drink?|"
        "Going by what I said, what should you pour me?",
    ),
    "sport": Fact(
        statements="My favorite sport is {}.|I play {} every week.|I am a big fan of {}.|{} is my favorite sport.|"
        "my favorite sport is {}|The sport I like most is {}.",
        reply="{} is fun and keeps you fit.",
        questions="What is my favorite sport?|Which sport do I play?|Do you remember my favorite sport?|"
        "what's my favorite sport?|Tell me my favorite sport.|What sport do I like?",
        answer="Your favorite sport is {}.",
        values="football|tennis|basketball|soccer|golf|baseball|hockey|boxing|judo|rugby|table tennis|ice hockey|"
        "cricket|"
        "handball|karate|wrestling|water polo|field hockey|bowling|gymnastics|figure skating|squash|darts|lacrosse",
        held_values="volleyball|badminton|fencing",
        held_questions="Which sport did I say I like best?|What sport did I tell you about?|"
        "Can you recall the sport I mentioned?",
    ),
    "instrument": Fact(
        statements="I play the {}.|I am learning the {}.|My instrument is the {}.|"
        "I have played the {} since I was a child.|"
        "i play the {}|I practice the {} every evening.",
        reply="The {} is a wonderful instrument.",
        questions="Which instrument do I play?|What is my instrument?|Do you remember which instrument I play?|"
        "what instrument do I play?|Tell me my instrument.|What do I play?",
        answer="You play the {}.",
        values="piano|guitar|violin|drums|flute|trumpet|saxophone|clarinet|trombone|organ|ukulele|bass guitar|tuba|"
        "viola|double bass|recorder|mandolin|harmonica|xylophone|electric guitar|French horn|bagpipes",
        held_values="cello|banjo|accordion",
        held_questions="Which instrument did I say I play?|What instrument did I tell you about?|"
        "Can you recall what I play music on?",
    ),
    "number": Fact(
        statements="My lucky number is {}.|The code for my door is {}.|{} is my lucky number.|"
        "My secret number is {}.|"
        "my number is {}|Please remember the number {}.|Remember my number: {}.",
        reply="All right, {}. I will keep it in mind.",
        questions="What is my number?|What is my lucky number?|Do you remember my number?|what's the number?|"
        "Tell me my number.|Which number did you keep in mind?",
        answer="Your number is {}.",
        values="|".join(str(number) for number in (*range(3, 100, 2), *range(1009, 9999, 37)) if number != 81),
        held_values="81|4810|7762",
        held_questions="Which number did I ask you to keep?|What was that number I told you?|"
        "Can you recall the number I gave you?",
    ),
    "trip": Fact(
        statements="I am going on vacation to {}.|Next month I will travel to {}.|We are flying to {} in summer.|"
        "My next trip is to {}.|i am traveling to {} soon|I booked a trip to {}.",
        reply="Have a wonderful time in {}!",
        questions="Where am I going on vacation?|Where will I travel?|Do you remember where my trip goes?|"
        "where am i flying to?|What is my next trip?|Tell me where I am going.",
        answer="You are going to {}.",
        values="Italy|Spain|Greece|France|Portugal|Norway|Iceland|Ireland|Croatia|Turkey|Egypt|Kenya|India|"
        "Thailand|"
        "Vietnam|Japan|Australia|Canada|Mexico|Peru|Chile|Brazil|Cuba|Sweden|Finland|Poland|Scotland|Malta|Sicily|"
        "Hawaii|Alaska|Crete|Bali",
        held_values="Tuscany|Lapland|Provence",
        held_questions="Which region did I say my trip goes to?|What place did I tell you I will visit?|"
        "Can you recall where I am headed?",
        invented=True,
    ),
    "subject": Fact(
        statements="I study {}.|I am a student of {}.|My favorite subject is {}.|At school I like {} most.|"
        "i study {}|"
        "{} is what I study.|I am learning {} at the moment.",
        reply="{} is an exciting subject.",
        questions="What do I study?|What is my subject?|Do you remember what I study?|what's my favorite subject?|"
        "Tell me what I study.|Which subject do I like?|What am I learning?",
        answer="You study {}.",
        values="history|biology|physics|mathematics|music|art|law|medicine|French|Spanish|German|Latin|English|"
        "economics|"
        "philosophy|geology|psychology|computer science|engineering|theology|chemistry|literature|sociology|"
        "Italian|"
        "politics|Russian|Japanese|nursing|statistics",
        held_values="geography|astronomy|Greek",
        held_questions="Which subject did I tell you about?|What did I say I am studying?|"
        "Can you recall the subject I mentioned?",
    ),
    "day": Fact(
        statements="My exam is on {}.|My day off is {}.|I see my doctor on {}.|The party is on {}.|"
        "our meeting is on {}|"
        "I have an appointment on {}.|My flight leaves on {}.",
        reply="I will keep {} in mind.",
        questions="On which day is it?|Which day did you keep in mind?|When is it?|Do you remember the day?|"
        "what day is it on?|Tell me the day.",
        answer="It is on {}.",
        values=_DAYS + "|May 3|June 12|July 21|March 8|April 30|August 15|October 2|December 11|tomorrow morning|"
        "the first of May|the tenth of June|January 19|November 27|February 14|September 9",
        held_values="Friday|Sunday|July 4",
        held_questions="Which day did I tell you?|What day did I say it takes place?|"
        "Can you recall the day I mentioned?",
    ),
    "book": Fact(
        statements="My favorite book is {}.|I am reading {}.|I love the book {}.|{} is my favorite book.|"
        "my favorite book is {}|The book I like most is {}.",
        reply="{} is a famous book.",
        questions="What is my favorite book?|Which book am I reading?|Do you remember my favorite book?|"
        "what's my favorite book?|Tell me my favorite book.|Which book do I like most?",
        answer="Your favorite book is {}.",
        values=_BOOKS,
        held_values="The Hobbit|Silas Marner|The Railway Children",
        held_questions="Which book did I say I like best?|What book did I tell you about?|"
        "Can you recall the book I mentioned?",
    ),
}

# Put before a statement or a question now and then.
STATEMENT_OPENERS = ("", "", "", "Hi! ", "By the way, ", "Just so you know: ", "Hello. ", "Listen, ", "Oh, ")
QUESTION_OPENERS = ("", "", "", "Quick question: ", "Hey, ", "So, ", "Now, ", "And ", "Please tell me: ", "Well, ")

# What may be talked about in between.
ASIDES: tuple[tuple[str, str], ...] = (
    ("Is coffee bad for you?", "In small amounts, coffee is fine for most people."),
    ("It is raining today.", "Then it is a good day to stay inside with a book."),
    ("I am tired.", "Then you should rest a little. A short nap can help."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("What day comes after Monday?", "Tuesday comes after Monday."),
    ("Do fish sleep?", "Yes, fish rest, but they do it with open eyes."),
    ("I am hungry.", "Then have a snack, perhaps some fruit or nuts."),
    ("What color is the sky?", "On a clear day the sky is blue."),
    ("How many hours has a day?", "A day has 24 hours."),
    ("Are whales fish?", "No, whales are mammals."),
    ("It is so hot today.", "Drink enough water and stay in the shade."),
    ("Can penguins fly?", "No, penguins cannot fly, but they swim very well."),
    ("What do cows eat?", "Cows eat mostly grass and hay."),
    ("I had a long day.", "I am sorry to hear that. I hope you can relax now."),
    ("That is good to know.", "I am glad to help."),
    ("Let us talk about something else.", "Sure! What would you like to talk about?"),
)
HELD_OUT_ASIDES: tuple[tuple[str, str], ...] = (
    ("Is tea good for you?", "Yes, tea is good for most people."),
    ("How many wheels has a car?", "A car has four wheels."),
)
