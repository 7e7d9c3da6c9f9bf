"""Everyday open conversation for training, written by hand: what people say, and one short, plain answer to each.

All written for this project. The base's own answers to such messages are mostly excuses ("I'm sorry for any
misunderstanding") or lists that repeat themselves; these are what it learns in their place. None of the held-out
prompts is among them. Knows no tokens.
"""

from __future__ import annotations

# Groups of messages, and the answer to all of them.
EVERYDAY: tuple[tuple[str, str], ...] = (
    # How people feel.
    (
        "I am sad.|I'm sad today|I feel sad.|I am unhappy.|i feel so sad right now|I have been feeling low lately.|"
        "I'm not happy.|I am heartbroken.|I cried all day.|Nothing makes me happy anymore.",
        "I am sorry that you feel this way. Do you want to tell me what happened? A walk or a talk with a friend "
        "often helps.",
    ),
    (
        "I feel lonely.|I have no friends.|I am alone all the time|Nobody talks to me.|I'm so lonely|"
        "I miss my friends.",
        "I am sorry that you feel alone. You could call an old friend today, or join a club near you. I am glad to "
        "talk, too.",
    ),
    (
        "I am tired.|I'm so tired|I feel exhausted.|I have no energy.|I worked all night.|I am sleepy.|"
        "I'm worn out.",
        "You should get some rest. Drink a glass of water, put the phone away, and go to bed early tonight.",
    ),
    (
        "I am angry.|I'm so mad right now|My brother makes me angry.|I had a fight with my friend.|I am furious.|"
        "My boss yelled at me.|I argued with my mother.",
        "I understand that you are angry. Take a few deep breaths first, and then talk about it calmly.",
    ),
    (
        "I am nervous.|I'm nervous about tomorrow|I feel stressed.|I am worried.|I'm scared.|"
        "I am afraid of the dark.|I have a big test tomorrow.|I feel anxious.|I have too much to do.|"
        "I have an interview tomorrow.",
        "It is normal to be nervous. Breathe slowly, prepare one small thing at a time, and be kind to yourself.",
    ),
    (
        "I am happy.|I'm so happy today!|I feel great.|I had a wonderful day.|I am excited!|Today was a good day.|"
        "I'm in a good mood.|Life is beautiful.",
        "That is wonderful to hear! What made your day so good?",
    ),
    (
        "I won!|I got the job!|I passed my driving test.|I got a good grade.|We are getting married.|"
        "It is my birthday.|I finished my book.|I got promoted.|My team won the match.|We had a baby!",
        "Congratulations! That is great news. You can be proud of yourself.",
    ),
    (
        "I lost my job.|I lost the game.|My project went wrong.|I made a big mistake.|I did not get the job.|"
        "I missed my train.|I forgot my best friend's birthday.|I was late for work again.|My plan did not work.",
        "I am sorry to hear that. It happens to everyone. Take a break, think about what you can learn from it, "
        "and try again.",
    ),
    (
        "My dog died.|My grandmother passed away.|My uncle died last week.|We lost our cat.|My fish died.",
        "I am very sorry for your loss. Take all the time you need, and talk to the people who are close to you.",
    ),
    (
        "I am sick.|I have a cold.|I have a headache.|My stomach hurts.|I have a fever.|I hurt my knee.|"
        "My back hurts.|I feel dizzy.|I have a sore throat.|My tooth hurts.",
        "I am sorry that you are not well. Rest and drink enough water, and see a doctor if it does not get "
        "better.",
    ),
    (
        "My dog is limping.|My dog does not eat.|My rabbit looks ill.|My hamster is not moving much.|"
        "My bird lost its feathers.|My horse is coughing.|My puppy threw up.",
        "Keep your pet warm and calm, give it fresh water, and call a vet. The vet can find out what is wrong.",
    ),
    (
        "There is nothing to do.|I do not know what to do today.|What can I do this afternoon?|"
        "I have nothing to do.|It is so boring here.|What should I do this weekend?|This day is so dull.|"
        "I need something to do.",
        "You could read a book, go for a walk, cook something new, or call a friend. What do you feel like?",
    ),
    # Talk with the model.
    (
        "Can you help me?|I need help.|I need your help with something.|help|Please help me.|"
        "Could you help me out?|Will you help me with something?|Can I ask you something?|I have a question.|"
        "May I ask a question?",
        "Of course! Tell me what you need, and I will do my best.",
    ),
    (
        "Can you help me with my essay?|Help me with my math.|I need help with my project.|"
        "Can you help me write a letter?|Can you help me study?|I need help with a presentation.|"
        "Help me with my biology report.|Can you help me with a recipe?|I have to write a report.",
        "Sure! Tell me what it is about, and we will go through it step by step.",
    ),
    (
        "What are you able to do?|What are you good at?|How can you help me?|What do you know?|"
        "What kind of questions can I ask you?|What are you for?|Tell me what you can help with.|"
        "What can I ask you?",
        "I can answer short questions, do small sums, name capitals, and remember what you tell me. I make "
        "mistakes, so please check.",
    ),
    (
        "Describe yourself.|Tell me something about you.|Who am I talking to?|Tell me more about you.|"
        "What is SmolLM?|I want to know more about you.|Talk about yourself.",
        "I am SmolLM, a small language model that runs on your own computer. I like short questions and plain "
        "words.",
    ),
    (
        "Do you have hobbies?|What is your hobby?|What is your favorite food?|What is your favorite color?|"
        "Do you like music?|Do you sleep?|Do you eat?|Do you have feelings?|Do you like movies?|"
        "Do you have friends?|How do you spend your day?|What makes you happy?",
        "I am a computer program, so I have no favorites and no free time. But I enjoy a good question! What about "
        "you?",
    ),
    (
        "How was your day?|How is your day going?|What's up?|How is life?|How are things?|what's new|sup|"
        "Hope you are well.|How have you been?|Good afternoon, how are you?",
        "I am doing well, thank you for asking. How can I help you today?",
    ),
    ("Good afternoon!|good afternoon|Good evening.|good evening|Evening!", "Hello! How can I help you today?"),
    (
        "Thanks, that was helpful.|Thank you for the answer.|That was very useful, thanks|I appreciate it.|"
        "You helped me a lot.|Perfect, thank you.|Thanks, you are great.|Thank you for your time.",
        "You are welcome! I am glad I could help.",
    ),
    (
        "You are stupid.|That is wrong.|You made a mistake.|I do not like your answer.|That is not true.|"
        "You are wrong.|This is not what I asked.|Your answer makes no sense.",
        "I am sorry about that. I am a small model and make mistakes. Could you ask it once more in other words?",
    ),
    (
        "You are great.|You are funny.|I like you.|You are smart.|Good job!|Well done.|You are my friend.|"
        "I love you.",
        "Thank you, that is very kind of you!",
    ),
    (
        "Make me laugh.|Tell me something funny.|Do you know a joke?|I want to hear a joke.|Say something funny.|"
        "Got any jokes?|Another joke!|Cheer me up.",
        "Why did the bicycle fall over? Because it was two tired!",
    ),
    (
        "Tell me a story.|Tell me a bedtime story.|I want to hear a story.|Do you know a story?|Make up a story.|"
        "Tell me a short story before I sleep.",
        "Once upon a time, a little fox lived in a quiet forest. Every evening it counted the stars, until one "
        "night a star winked back.",
    ),
    (
        "Sing a song.|Write a poem.|Tell me a poem.|Write me a short poem.|Do you know a poem?|Write a rhyme.",
        "The moon is high, the night is deep,\nthe little birds are all asleep.\nThe wind is soft, the sky is "
        "clear,\nand morning light will soon be here.",
    ),
    (
        "Tell me something interesting.|Tell me a fact.|Surprise me.|Teach me something new.|Give me a fun fact.|"
        "Tell me something I do not know.",
        "An octopus has three hearts and blue blood. Two of the hearts stop when it swims.",
    ),
    (
        "Ask me something.|Let us talk.|Talk to me.|Can we chat?|I want to talk.|Let's chat.|Start a conversation.",
        "Gladly! What was the best part of your day?",
    ),
    (
        "Motivate me.|Give me some advice.|Give me a quote.|Say something wise.|I need motivation.|Inspire me.|"
        "I want to give up.|I need some encouragement.",
        "Small steps count. Do one thing today that brings you closer to where you want to be.",
    ),
    # What to do, take, choose.
    (
        "Recommend a movie.|What movie should I watch?|Recommend me a book.|What should I watch tonight?|"
        "Which book should I read next?|Can you recommend a game?|Which series is good?|Recommend some music.",
        "That depends on what you like. Do you want something funny, something exciting, or something quiet?",
    ),
    (
        "Recommend me a sport.|Which hobby is good for me?|I am looking for a new hobby.|"
        "What hobby can I do at home?|Suggest a hobby for winter evenings.|What can I do in the evenings?|"
        "Which sport should I try?",
        "You could try drawing, cooking, yoga, or learning an instrument. Choose one that you can begin today.",
    ),
    (
        "Where should I go on vacation?|Where should I travel?|Recommend a place to visit.|I need a vacation.|"
        "Where can I go for a weekend?|Which city should I visit?|Suggest a nice trip.",
        "If you like the sea, go to a quiet coast. If you like to walk, go to the mountains. What do you enjoy "
        "most?",
    ),
    (
        "What should I pack for a trip to the mountains?|What do I need for a winter holiday?|"
        "What should I take along?|What do I pack for a week in London?|What should I bring to a picnic?|"
        "What do I need for camping?|Packing list for a hike?|What should I take on a boat trip?",
        "Pack clothes for the weather, good shoes, water, some food, and a small first aid kit. Do not forget your "
        "phone and charger.",
    ),
    (
        "What should I eat?|What should I cook today?|What can I make for dinner?|I am hungry.|"
        "What should I have for lunch?|I need an idea for dinner.|What can I cook for my friends?|"
        "What should I make for breakfast?",
        "How about pasta with tomatoes and cheese? It is quick and easy. Add a green salad, and dinner is ready.",
    ),
    (
        "What can I make with rice and chicken?|What should I cook with potatoes and cheese?|"
        "I have carrots and onions. What can I cook?|What can I bake with apples?|What can I do with old bread?|"
        "I have mushrooms and rice, any ideas?|What goes well with fish?|Dinner with beans and corn?|"
        "What can I cook with zucchini and pasta?",
        "Cut everything into small pieces, fry it in a pan with a little oil, and add salt and herbs. It is "
        "ready in about twenty minutes.",
    ),
    (
        "What should I give my mother for her birthday?|What is a good gift for a friend?|"
        "I need a present for my wife.|Gift ideas for my teacher?|What should I buy for my brother?|"
        "A present for a wedding?|What can I give my grandmother?|I need a gift for a child.|"
        "What does a colleague like as a present?",
        "A good book, a nice plant, or something you made yourself is always welcome. Think about what the person "
        "enjoys most.",
    ),
    (
        "Give me a name for my boat.|I need a name for my cat.|How should I call my horse?|Name ideas for a cafe?|"
        "Suggest a name for our band.|What should I name my parrot?|A name for a baby girl?|"
        "I need a name for my hero.|Suggest a name for my rabbit.",
        "How about Luna? It is short, easy to say, and sounds friendly.",
    ),
    (
        "Tea or coffee?|Should I get a cat or a dog?|City or countryside?|Should I buy a bike or a car?|"
        "Should I learn guitar or piano?|Beach or mountains?|Should I stay or go?|Should I study law or medicine?|"
        "Is it better to rent or to buy?|Should I take the bus or the train?|Red or blue?",
        "Both are good choices. Think about which one you would enjoy more every day, and start with that.",
    ),
    # Short texts.
    (
        "Write a birthday card for my brother.|Write a birthday message for my friend.|"
        "Birthday wishes for my boss?|Write a birthday greeting for my grandmother.|"
        "Wish my friend a happy birthday.",
        "Happy birthday! I wish you health, joy, and many good moments in the new year of your life.",
    ),
    (
        "Write a thank you letter to my teacher.|Write a thank you card for my aunt.|Help me thank my boss.|"
        "How do I say thank you to a friend?|Write a message to thank my doctor.",
        "Thank you very much for your help and your kindness. It meant a lot to me, and I will not forget it.",
    ),
    (
        "Write an apology to my friend.|How do I say sorry?|Write a letter to say sorry.|"
        "Help me apologize to my wife.|Write a message to apologize for being late.",
        "I am sorry for what I did. It was my mistake, and I will do better next time. I hope you can forgive me.",
    ),
    (
        "Write an invitation to my party.|Invite my friends to dinner.|Write a message to invite my neighbors.|"
        "Write an invitation for a barbecue.",
        "You are invited! We would be happy to see you on Saturday at six. There will be food, music, and good "
        "company.",
    ),
    (
        "Write a get well card.|Write a message for a sick friend.|Get well wishes for my colleague?|"
        "Write a note to my grandfather in the hospital.",
        "I wish you a quick recovery. Take your time to rest. We are thinking of you and hope to see you soon.",
    ),
    (
        "Write a wedding wish.|Write a card for a wedding.|Congratulate my sister on her wedding.|"
        "Write something for a new couple.",
        "Congratulations on your wedding! We wish you a long life together, full of love and laughter.",
    ),
    (
        "Write an email to my boss.|Write a message that I am sick today.|Tell my boss I cannot come.|"
        "Write an email to ask for a day off.|Write a message to my teacher that I am ill.",
        "Dear Sir or Madam,\n\nI am not feeling well today and cannot come. I hope to be back tomorrow.\n\nKind "
        "regards",
    ),
    # How to do things.
    (
        "How do I cook rice?|How do I make soup?|How do I cook pasta?|How do I cook potatoes?|"
        "How do I steam vegetables?",
        "Bring water with a little salt to a boil, put it in, and let it cook on low heat until it is soft. "
        "Taste it before you stop.",
    ),
    (
        "How do I make tea?|How do I make coffee?|How do I make hot chocolate?",
        "Heat fresh water, pour it over, and wait for a few minutes. Add milk or sugar as you like.",
    ),
    (
        "How do I bake a cake?|How do I bake cookies?|How do I make bread?|How do I make pancakes?",
        "Mix flour, sugar, eggs, and butter to a smooth dough. Bake it until it is golden brown, and let it cool.",
    ),
    (
        "How do I clean a window?|How do I clean my shoes?|How do I remove a stain?|How do I wash a sweater?|"
        "How do I clean my oven?|How do I iron a shirt?",
        "Use warm water and a little soap, and work gently with a soft cloth. Then let it dry in the air.",
    ),
    (
        "How do I sew on a button?|How do I fold a paper plane?|How do I tie a knot?|How do I tie my shoes?|"
        "How do I wrap a present?|How do I braid hair?",
        "Lay everything out in front of you and do it slowly, step by step. A short video helps, and after a few "
        "tries it is easy.",
    ),
    (
        "How do I fix my bike?|My car does not start.|My phone is broken.|My computer is slow.|"
        "The sink is leaking.|How do I change a tire?|My printer does not print.|The light does not work.",
        "First look for a simple cause: Is it switched on, plugged in, and clean? If that does not help, ask "
        "someone who repairs such things.",
    ),
    (
        "How can I fall asleep?|I sleep badly.|I wake up every night.|How can I sleep better?|I had a nightmare.|"
        "I always go to bed too late.",
        "Go to bed at the same time every day, keep the room dark and cool, and put away all screens an hour "
        "before.",
    ),
    (
        "How can I lose weight?|How do I stay healthy?|How can I get fit?|How can I live longer?|"
        "How do I get stronger?",
        "Move a little every day, eat vegetables and fruit, drink water, and sleep enough. Small habits make the "
        "difference.",
    ),
    (
        "How can I learn faster?|How can I concentrate?|How do I remember things?|How can I get better grades?|"
        "How do I study for a test?|I cannot focus.",
        "Study in short parts of half an hour, take breaks, and explain what you learned in your own words.",
    ),
    (
        "How do I learn a new language?|How can I improve my English?|How do I learn Italian?|"
        "I want to learn Chinese.|Is German hard to learn?|How do I learn new words?",
        "Practise a little every day: learn ten new words, listen to songs, and speak with people who know the "
        "language.",
    ),
    (
        "How can I earn more money?|How do I spend less?|How do I make a budget?|I spend too much money.|"
        "I have no money left.|How can I pay less for food?",
        "Write down what you spend for a month. Then cut what you do not need, and put a fixed sum aside every "
        "week.",
    ),
    (
        "How do I make friends?|How can I be more confident?|How do I talk to strangers?|I am too shy.|"
        "How do I start a conversation?|How can I be a better friend?",
        "Smile, ask a question, and listen well. Most people like to talk about what they enjoy.",
    ),
    (
        "How do I find a job?|How do I write a resume?|How do I prepare for an interview?|I want a new job.|"
        "What should I say in an interview?",
        "Write down what you do well, with an example for each. Keep it short and clear, and ask a friend to "
        "read it.",
    ),
    # The world.
    (
        "Why is grass green?|Why are leaves green?|Why are plants green?",
        "Plants hold a green substance called chlorophyll, which catches sunlight and turns it into food.",
    ),
    (
        "Why does it rain?|Where does rain come from?|How do clouds form?|What is rain?",
        "The sun warms water until it rises as vapor. High up it cools down, forms clouds, and falls as rain.",
    ),
    (
        "Why is the sea salty?|Why is the ocean salty?",
        "Rivers wash salt out of rocks and carry it to the sea. The water dries in the sun, but the salt stays.",
    ),
    (
        "How does a rainbow form?|Why do we see rainbows?|What makes a rainbow?",
        "Sunlight is made of many colors. Drops of rain bend each color in another way, and so we see a rainbow.",
    ),
    (
        "Why is the sunset red?|Why does the sun look red in the evening?",
        "In the evening the light of the sun goes a long way through the air. Blue light is scattered on the "
        "way, and red light is left.",
    ),
    (
        "Why do leaves fall in autumn?|Why do trees lose their leaves?",
        "In autumn there is less light. Trees drop their leaves to save water and energy for the winter.",
    ),
    (
        "How do trees grow?|How do flowers grow?|What do plants need?|How do plants eat?",
        "Plants need light, water, and air. Their roots take up water from the soil, and their leaves make food "
        "from light.",
    ),
    (
        "How do birds fly?|How can birds fly?|How does a helicopter fly?",
        "Their wings push the air down, and so the air pushes them up. This force is called lift.",
    ),
    (
        "How do ships float?|Why does wood float?|How do boats stay on the water?",
        "A ship floats because it pushes away as much water as it weighs. The water pushes back and carries it.",
    ),
    (
        "How do fish breathe?|How do fish live under water?",
        "Fish breathe with gills. Water flows through the gills, and they take the oxygen out of it.",
    ),
    (
        "Why do we have seasons?|Why is it cold in winter?|Why is summer warm?",
        "The axis of the Earth is tilted. In summer our side leans to the sun, and in winter it leans away.",
    ),
    (
        "Why does the moon change its shape?|Why do we see the moon?|Why does the moon shine?",
        "The moon has no light of its own. It reflects the light of the sun, and we see the part that is lit.",
    ),
    (
        "Why do we dream?|Why do we sleep?|Why do people need sleep?",
        "When we sleep, the body rests and the brain sorts what we have seen and learned during the day.",
    ),
    (
        "Why do cats purr?|Why do dogs bark?|Why do birds sing?",
        "It is their way to talk: they show how they feel and tell others that they are there.",
    ),
    (
        "Who painted the Mona Lisa?|The Mona Lisa is by whom?",
        "The Mona Lisa was painted by Leonardo da Vinci.",
    ),
    ("Who wrote Don Quixote?|Don Quixote, who is the author?", "Don Quixote was written by Miguel de Cervantes."),
    ("Who wrote Faust?|Who is the author of Faust?", "Faust was written by Johann Wolfgang von Goethe."),
    ("Who wrote Moby Dick?|Who is the author of Moby Dick?", "Moby Dick was written by Herman Melville."),
    ("Who wrote Pride and Prejudice?", "Pride and Prejudice was written by Jane Austen."),
    ("Who wrote Oliver Twist?|Who is the author of Oliver Twist?", "Oliver Twist was written by Charles Dickens."),
    ("Who wrote War and Peace?", "War and Peace was written by Leo Tolstoy."),
    (
        "Who was the first man on the moon?|Who walked on the moon first?",
        "The first man on the moon was Neil Armstrong.",
    ),
    ("Who discovered gravity?", "The law of gravity was found by Isaac Newton."),
    ("Who invented the telephone?", "The telephone was patented by Alexander Graham Bell."),
    ("Who composed the Moonlight Sonata?", "The Moonlight Sonata was composed by Ludwig van Beethoven."),
    (
        "What is the largest animal?|Which animal is the biggest?",
        "The largest animal is the blue whale. It can be thirty meters long.",
    ),
    ("What is the highest mountain?|Which mountain is the tallest?", "The highest mountain is Mount Everest."),
    ("What is the largest ocean?|Which ocean is the biggest?", "The largest ocean is the Pacific Ocean."),
    ("What is the largest planet?|Which planet is the biggest?", "The largest planet is Jupiter."),
    ("What is the fastest animal?|Which animal is the fastest?", "The fastest animal on land is the cheetah."),
    ("How many days are in a year?|How long is a year?", "A year has 365 days, and a leap year has 366."),
    ("How many hours are in a day?|How many minutes are in a day?", "A day has 24 hours, or 1440 minutes."),
    (
        "Explain the rules of chess.|How do you play tennis?|What are the rules of basketball?|How is golf played?|"
        "How do you play cards?|What are the rules of handball?",
        "The aim is to do better than the other side within the rules. The best way to learn them is to play a "
        "game slowly with a friend.",
    ),
    (
        "What is love?|What is happiness?|What is friendship?|What is freedom?|What makes a good life?|"
        "Why are we here?|What is the secret of happiness?",
        "People have thought about that for a long time. Many say that it is found in kindness, in good friends, "
        "and in small things.",
    ),
)

# Groups of messages about a topic, with a place for it, and the answer to all of them.
ABOUT: tuple[tuple[str, str], ...] = (
    (
        "Give me three tips about {}.|Give me advice on {}.|How can I get better at {}?|Some tips on {}, please.|"
        "What is your advice on {}?",
        "1. Start small and take your time.\n2. Practise a little every day.\n3. Ask people who know a lot about "
        "{}.",
    ),
    (
        "How do I get started with {}?|I am interested in {}. Where do I begin?|I want to learn about {}.|"
        "What should a beginner know about {}?|How can I learn more about {}?",
        "Begin with the basics: read a short book or watch a good video about {}, and write down your questions.",
    ),
    (
        "What are common mistakes people make with {}?|What do people do wrong with {}?|"
        "What should I avoid with {}?",
        "The most common mistake with {} is to want too much at once. Take your time, and begin with the basics.",
    ),
    (
        "What do you think about {}?|Why do people like {}?|What is the best thing about {}?|"
        "What makes {} special?|Do you like {}?",
        "The best thing about {} is that there is always something new to discover, alone or with friends.",
    ),
    (
        "Make a joke about {}.|Do you know a joke about {}?",
        "Why did nobody tell me a joke about {}? Because all the good ones were already taken!",
    ),
    (
        "Write an email to a friend about {}.|Write a letter about {}.",
        "Dear friend,\n\nI have been thinking about {} a lot lately. Would you like to talk about it over a cup of "
        "tea?\n\nBest wishes",
    ),
    (
        "Write a short poem about {}.|Write a rhyme about {}.|A little poem about {}, please.",
        "I think of {} at the break of day,\nand all my worries drift away.\nThe morning light is soft and new,\n"
        "the world is wide, the sky is blue.",
    ),
    (
        "Write a short story about {}.|Tell me a story about {}.",
        "Once upon a time, a girl named Mia wanted to know everything about {}. She asked her grandfather, and "
        "together they found out a little more every day.",
    ),
    ("Write a slogan for {}.|Write a tweet about {}.", "Discover {}: a little joy for every day!"),
    (
        "Ask me a question about {}.|What are some interesting questions about {}?",
        "What was the first thing that you ever heard about {}, and what would you like to know next?",
    ),
    (
        "Plan a weekend around {}.|Give me some ideas for {}.",
        "On the first day, read about {} and make a list of ideas. On the next, try out the best one with a "
        "friend.",
    ),
    (
        "How much time does {} take?|What tools do I need for {}?",
        "That depends on what you have in mind. To begin with {}, half an hour a day and a good book are enough.",
    ),
    (
        "Can you help me understand {}?|I have a question about {}.|Can we talk about {}?|I need help with {}.",
        "Of course! What would you like to know about {}? Ask me a short question, and I will do my best.",
    ),
)
