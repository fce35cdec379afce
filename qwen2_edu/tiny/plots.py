"""The plots of the small world, written to be read by people and by `grammar.py`.

A plot is a list of beats. A line that starts with "-" opens a beat and says what happens in it
(`gives A B T`: A gives T to B; `facts.py` knows all of these); below it stand the sentences that
can tell it, one a line ("..." goes on with the line above). "?aside" is a beat that may be left
out. "=" opens an ending and names its mood: what comes after it follows the beats above it.
`sum N K M` promises that the numbers N = K + M.

The mood is what became of the wish in the story: it came true (glad), it did not (sad), it is not
settled when the story stops (tense), or there was nothing to worry about (calm).

Letters are roles: A B C persons, T U things, P Q places, Y Z animals, K M N numbers, F a treat.
Outside the braces no word of `words.py` may stand, or the checker would be misled; a test looks.
"""

SHARED = """
aside
    {Y.A} walked past and looked at everybody as if they owed it money.
    In a tree sat {Y.a} and would not say how it had got there.
    {Y.A} sneezed, and for a while nobody could remember what came next.
    From behind a wall {Y.a} listened to every word and shook its head.
    Not far away {Y.a} was having an argument with a puddle and losing it.
    {Y.A} with a short temper crossed the road and stared at the sky until it moved.
    {Y.A} sat on the fence and practised looking important.
    At this point {Y.a} began to sing, and somebody threw a shoe.
    {Y.A} in a very bad mood asked what all of this was about, and got no answer.
    Behind them {Y.a} walked backwards into a pond and pretended that it had meant to.
    {Y.A} had seen the whole thing but was saving it for its memoirs.
    Up on the roof {Y.a} was counting the tiles and had to start again.
    {Y.A} came along with a cold and an opinion, and shared both.
    Meanwhile {Y.a} bit a fence, for it was that kind of day.

close
    The moon saw all of it and said nothing.
    That was on a Tuesday, and it rained a little, but only on the roof.
    Behind the houses the wind turned round and went to bed.
    A snail had watched from the start, and it told the other snails for years.
    Somebody should write this down, said the neighbours, and went in to have their soup.
    And all the while a beetle had been crossing the road, and now it was on the other side.
    Far away a train whispered something, as trains do in the evening.
    After that there was a silence in which one could hear the grass grow.
    A cloud that looked like a potato came by, saw them, and floated on.
    Then it was time for supper, even for those who had done nothing all day.
    The street lights went on, one after the other, and the last one winked.
    It is said that a frog wrote a poem about it, but frogs say such things.
    The neighbours closed their windows, and then opened them again a little, to hear more.
    An owl asked who, and who, and who, but nobody told it.
    Up in the sky a star fell down, had a look, and decided to stay.
    And the grass, which had been lying down, stood up again.
"""

PLOTS = """
plot lost
- has A T
    {A} had {T.a}.
    {A} had {T.a} and talked about it a little too often.
    There was once {T.a}, and it belonged to {A}.
    {A} was very proud of {A.her} new {T}, which was {T.is}.
- goes A P
    One morning {A} went to the {P}, and the {T} came too.
    On Monday {A} took it along to the {P} for some fresh air.
    {A} put on clean socks and went to the {P}, with the {T} under one arm.
    The {T} looked bored at home, and so {A} went to the {P} with it.
?aside
- loses A T P
    Somewhere {P.at}, between two sneezes, {A} lost the {T}.
    {A} stopped to laugh at a cloud, and that is how {A.she} lost the {T} {P.at}.
    Nobody knows how it is done, but {P.at} {A} lost the {T.c}.
    {A} waved to a balloon, with both arms, and in this way lost the {T} {P.at}.
-
    {A} searched every corner twice and found two pebbles and an old sock.
    "It cannot have walked away," said {A}, and looked for footprints.
    {A} went back over every step, and over some that {A.she} had never taken.
    {A} looked under everything, then behind everything, and then asked a worm.
-
    {B} came by and helped, mostly by pointing.
    {B} stopped and asked if it was the {T.c} or some other {T}.
    {B} heard about it and helped to look, with both eyes open for once.
    {B} crawled about in the dust with {A} and said that the {T} could not be far.
= glad
- finds B T; gives B A T
    At last {B} found the {T} {Q.at} and gave it back to {A}.
    It was {B} who found the {T}, upside down {Q.at}, and {B} gave it to {A}.
    Late in the day {B} found it {Q.at}, gave the {T.c} to {A} and took a bow.
    {B} found the {T} {Q.at}, where some ants were pulling it home, and gave it to {A}.
= glad
- finds A T
    Then {A} sat down to think, and there was a crunch, and so {A} found the {T}.
    In the end {A} found the {T}: it had been in {A.her} own left hand since lunch.
    {A} gave up and went to bed, and there, under the sheet, {A} found the {T.c}.
= sad
- finds B T; breaks T
    At last {B} found the {T} {Q.at}, but a cart had gone over it and it was flat as a leaf.
    It was {B} who found the {T} {Q.at}, or what the rain had left of it.
= sad
- gone T
    Nobody found the {T}, not that day and not in any other week.
    The {T.c} was never found. Perhaps a fish lives in it now.
    The {T} stayed away, and in the end {A} said goodbye to it with a short speech.
= tense
-
    The stars came out, {A} and {B} were still bent over the grass, and now something rustled.
    "One more minute," said {A}, as {A.she} had said for an hour, and lit the last match.
    It was almost dark. {B} pointed at something in the reeds, and it moved.

plot trade
- has A T; has B U
    {A} had {T.a}, and {B} had {U.a}.
    {A} owned {T.a}. Next door lived {B}, who owned {U.a}.
    On one side of the street {A} had {T.a}; on the other side {B} had {U.a}.
    {B} had {U.a}, and {A}, who lived upstairs, had {T.a}.
-
    Each of them thought that the other had been luckier.
    Whenever {B} looked away, {A} stroked the {U}.
    {A} dreamed of the {U} at night, and {B} dreamed of the {T}, but louder.
    {A} wanted that {U} more than pudding, and {B} felt the same about the {T}.
- goes A P; goes B P
    They met {P.at} to talk it over like grown people.
    So both went to the {P}, sat down and made serious faces.
    They went to the {P}, as one does for important business.
?aside
-
    "It is nearly new," said {A}. "So is mine," said {B}. Both of them coughed.
    {B} asked if the {T} could swim. {A} asked if the {U} could sing. Both had to think.
    {A} praised the {T.c} for ten minutes. {B} praised the {U.c} for eleven.
    "Mine is {T.colour}," said {A}. "So it is," said {B}, and that was the first hour.
= glad
- gives A B T; gives B A U
    Then {A} gave the {T} to {B}, {B} gave the {U} to {A}, and both ran home before the other
    ... could think again.
    So {A} gave {B} the {T}, {B} gave {A} the {U}, and each was sure to have tricked the other.
    They shook hands. {A} gave {B} the {T}, {B} gave {A} the {U}, and {A} hugged it all night.
= sad
- gives A B T; gives B A U; breaks U
    So {A} gave the {T} to {B}, and {B} gave the {U} to {A}, in whose hands it fell to pieces.
    {A} gave {B} the {T} and {B} gave {A} the {U}, but on the way home it was the {U.c} that broke.
= sad
-
    But no, {B} could not part with it, and so {A} went home with the same {T} as before.
    They could not agree, not even on the weather, and each kept what each had.
    "Never," said {B}. {A} asked again at noon and at night, and it was still never.
= tense
-
    "Give me one night to think," said {B}, and that night nobody in the street slept.
    Both stretched out one arm, both waited, and neither wanted to let go first.
    {B} said a number, {A} said another, and then nobody said anything for a very long time.

plot present
- has A T
    {B} had a birthday on Sunday, so {A} bought {T.a} for {B.him}.
    {A} had {T.a}, wrapped in paper, because Sunday was the birthday of {B}.
    For the birthday of {B}, {A} had made {T.a}, and it had taken a month.
    {A} saved up all winter and got {T.a}, which was for {B}, whose birthday was on Sunday.
- puts A T P
    {A} hid the {T} {P.at}, where no one ever looks.
    To keep it secret, {A} hid the {T.c} {P.at} under some straw.
    {A} put the {T} {P.at} and told the spiders to keep quiet.
-
    Nobody had told {Z.a} with a short temper that this was a secret.
    But {Z.a} in a bad mood had watched it all from behind a wall.
    Now, quite near lived {Z.a} who could not stand secrets.
    The spot belonged to {Z.a}, and that {Z} did not like to share.
?aside
= glad
- takes Z T; gives Z B T
    On Sunday the {Z} took the {T}, marched right into the party, gave it to {B} and ate
    ... the paper.
    On Sunday morning the {Z} took it and gave the {T.c} to {B}, who had not hoped for so much.
= glad
- fetches A T; gives A B T
    On Sunday {A} fetched the {T}, tiptoed past the {Z} and gave it to {B}, who forgot to breathe.
    But {A} fetched it in time and gave the {T.c} to {B}, and {B} danced with everybody,
    ... even the {Z}.
= sad
- takes Z T
    On Sunday the place was empty, for the {Z} took the {T} in the night, and {B} got only a song.
    On Sunday morning the {Z} took the {T.c} and swam away with it, and {A} came with nothing.
    Before the guests came, the {Z} took the {T} and ate the note, and {B} got a handshake.
= tense
-
    On Sunday {B} rang an hour too early. {A} looked at the window: something was chewing out there.
    On Sunday {A} crept closer. The straw moved. The {Z} was awake, and the guests were waiting.
    On Sunday {B} asked what was behind the door. It was the {Z}, and it was not in a good mood.

plot mixup
- has A T; has B U
    {A} had {T.a}, and {B} had {U.a}, and both were in a hurry that day.
    Two people came in from the rain: {A}, who had {T.a}, and {B}, who had {U.a}.
    {A} owned {T.a} and {B} owned {U.a}, and neither of them ever wore glasses.
    {A} had {T.a}. {B} had {U.a}. This matters later.
- puts A T P; puts B U P
    They left the {T} and the {U} side by side {P.at} and played cards until noon.
    {A} left the {T} {P.at}, {B} left the {U} there too, and they went off to see a juggler.
    {A} put the {T} down {P.at}, and {B} put the {U} next to it, and then came lunch.
-
    Then {Z.a} shouted, or something like it, and everybody ran for the door.
    Then the lights went out, because {Z.a} had wanted to see what the switch does.
    A little later {Z.a} rang the fire alarm, out of boredom.
- fetches A U; fetches B T
    In the dark {A} picked up the {U} and {B} picked up the {T}.
    {A} grabbed the {U}, {B} grabbed the {T}, and off they went.
    So {A} ran off with the {U}, and {B} ran off with the {T}.
= glad
- gives A B U; gives B A T
    They both noticed it in bed. At sunrise {A} gave {B} the {U}, and {B} gave {A} the {T}, and then
    ... they had pancakes.
    The next day {A} gave the {U.c} back to {B}, and {B} gave the {T.c} back to {A}, who had missed
    ... it badly.
= calm
-
    Neither of them noticed, then or later, and the days went by like any others.
    At home {A} thought that it had changed a little, but so does everybody, and {A.she} made tea.
    Both slept well, and in the morning each used what was there, as if it had always been so.
= sad
-
    {A} noticed it on the stairs and ran back, but {B} had already sailed for another country.
    {A} cried out when {A.she} saw it, but by then {B} was gone, and nobody knew the street.
    {A} wrote {B} seven letters to get the {T} back, and every letter came back unopened.
= tense
-
    At midnight {A} knocked at the house of {B}. Steps came nearer, and they were not those of {B}.
    {A} saw it at home and ran. The train of {B} was about to leave, and the whistling had begun.
    When {A} called, {B} picked up, breathed, and said nothing at all.

plot race
- has C T
    {C} had {T.a} and said that the winner of the race should get it.
    The prize of the race was {T.a}. {C} had it under one arm and let nobody touch it.
    {C} had {T.a}, and whoever won the race was to have it.
- goes A P; goes B P
    {A} and {B} went to the {P}, where the race began.
    The start was {P.at}, so {A} went to the {P} early, and {B} went to the {P} late.
    So {A} and {B} went to the {P} and drew a line on the ground.
-
    {A} had dreamed of the {T} since spring.
    {A} had even built a little shelf for the {T} already.
    {A} wanted the {T} so much that {A.her} knees hummed.
    All year {A} had trained for the {T.c}, up and down the stairs.
?aside
-
    {C} shouted "Go!" so loudly that {Z.a} sat down. {B} shot ahead.
    Off they went, and {Z.a} joined in without being asked.
    They ran, they panted, and {Z.a} ran after them, for reasons of its own.
    {B} was fast, {A} was faster, and {Z.a} had not understood that it was only watching.
= glad
- wins A; gives C A T
    {A} won by the length of a nose, and {C} gave the {T} to {A}.
    In the last bend {A} flew past, {A} won, and {C} gave {A} the {T.c}.
    {B} stopped to wave to the crowd, so {A} won, and {C} gave {A} the {T}.
= sad
- wins B; gives C B T
    {A} stopped to tie a shoe, so {B} won, and {C} gave the {T} to {B}.
    {B} won by a mile, and {C} gave {B} the {T.c}, while {A} was still on the way.
    {A} ran the wrong way, and fast. {B} won, and {C} gave the {T} to {B}.
= sad
- wins Z; gives C Z T
    The {Z} won, and rules are rules: {C} gave the {T} to the {Z}.
    Nobody had thought of it, but the {Z} won, and {C} gave the {T.c} to the {Z}.
    {A} and {B} tripped over each other, the {Z} won, and {C} gave the {Z} the {T}.
= tense
-
    In the last bend {A} and {B} were side by side, and {C} could not look.
    Ten steps before the end {A} was half a head behind, and {A.she} had one breath left.
    {A} could see the line. {A} could hear {B}, very close, and the {Z}, even closer.

plot picnic
sum N K M
- own A N F; goes A P; goes B P
    {A} packed {N} {F} and went to the {P} with {B}.
    {A} and {B} went to the {P}, and {A} had {N} {F} for the two of them.
    With {N} {F} in a cloth, {A} walked to the {P}, and {B} came along.
- has B T
    {B} had brought {T.a} and nothing to eat.
    {B} had {T.a}, which is hard to chew.
    {B} came with {T.a} and a good appetite.
    "And I have {T.a}!" said {B}, as if that were food.
?aside
- pass A B K F
    {A} gave {B} {K} {F}.
    {A} sighed and gave {K} {F} to {B}.
    {B} said please three times, and {A} gave {B} {K} {F}.
    {B} looked so thin that {A} gave {B.him} {K} {F}.
- left A M F
    That left {M} {F} for {A}.
    So {A} had {M} {F}, and counted again, and had {M}.
    For {A} there were {M} {F}, which seemed fair until one did the sum.
= calm
-
    Then they lay on their backs and gave names to the clouds until the names ran out.
    They talked about soup, and about shoes, and later about soup again.
    A leaf fell. They discussed it. Another leaf fell, and they let that one pass.
= glad
- gives B A T
    "You may have what you always wanted," said {B} with a full mouth, and {B} gave {A} the {T}.
    Then {B} gave the {T.c} to {A}, and it was the very one that {A} had wished for.
    {A} had never dared to ask for the {T}, and now {B} gave it to {A}, just like that.
= sad
- sub A M F
    Then {Z.a} came and ate the {M} {F} of {A}, all of them, slowly, and {A} went home hungry.
    {A} only blinked, but when {A.she} looked again, {Z.a} had eaten all {M} {F} that {A.she} had.
= tense
-
    Then {Z.a} with a short temper came out of the ferns, step by step, and sniffed.
    Something growled. {Z.A} stood between them and the way home and looked at the lunch.
    {B} stopped chewing. Right behind {A} stood {Z.a}, and it had not eaten since Friday.

plot pie
sum N K M
- own A K F
    {A} wanted to bake a pie. It needed {N} {F}, and {A} had {K} {F}.
    A pie needs {N} {F}, but {A} had only {K} {F} in the house.
    {A} counted. There had to be {N} {F} for the pie, and {A} had {K} {F}.
    {A} had {K} {F}, and the pie for grandmother was to have {N} {F}.
- has A T
    {A} also had {T.a}, which was no help.
    Beside them lay {T.a}, which {A} had tried to bake last time.
    {A} also owned {T.a}, and looked at it for a while, but no.
    Then there was {T.a} that {A} owned, but it did not taste of much.
- goes A P
    So {A} ran to the {P}, where {B} lived.
    {A} went to the {P} and asked {B}, who always has some.
    {A} took off the apron and went to the {P} to find {B}.
?aside
= glad
- add A M F; gives A B T
    {B} gave {A} the missing {M} {F}, and for that {A} gave {B} the {T.c}. The pie was a tower.
    "Take these," said {B}, and {A} got {M} {F} and gave {B} the {T} in return. Soon it smelled
    ... of pie.
= glad
- add A M F
    {B} gave {M} {F} to {A} and asked only for the first slice, which was a large one.
    Without a word {B} gave {A} {M} {F}, and in the evening the pie made grandmother sing.
    {B} counted out loud and gave {A} {M} {F}, and the pie came out round, which was new.
= sad
-
    But {B} had eaten the last of them a minute before, so {A} went home and there was no pie.
    {B} turned every pocket inside out and found only crumbs. Grandmother had bread that day.
    {B} only sold soap these days, and there is no pie that one can make with soap.
= tense
-
    {B} had them but first asked a riddle. {A} opened {A.her} mouth, and {Z.a} held its breath.
    "I must ask the {Z}," whispered {B}. Something heavy came down the stairs.

plot promise
- has B T; puts B T Q
    {B} had {T.a} but left it {Q.at}, and now {B.she} could not sleep.
    Everybody makes mistakes. {B} had {T.a} and left it {Q.at}.
    {B} had left {B.her} {T}, which was {T.is}, {Q.at}, and it was going to rain.
    "I had {T.a}, and I left it {Q.at}!" cried {B}.
-
    "I will bring it before sunset, I promise," said {A}.
    {A} promised to bring it before dark and shook hands on it, twice.
    "Before the moon is up you shall have it," promised {A}, who liked to talk like that.
- goes A Q; fetches A T
    {A} went to the {Q} and picked up the {T}, which was heavier than it looked.
    So {A} went to the {Q}, said good day to the {T} and picked it up.
    It was a long way, but {A} went to the {Q}, picked up the {T.c} and turned back.
-
    On the way back {Z.a} stood in the middle of the path and did not feel like moving.
    Halfway home {Z.a} with a short temper lay across the path.
    Then, round a corner, came {Z.a}, stopped, and would not let anyone by.
?aside
-
    {A} tried kind words. The {Z} had heard kind words before.
    {A} sang a song. The {Z} waited for the second verse.
    {A} offered it half a sandwich. The {Z} ate it and stayed where it was.
= glad
- gives A B T
    Then it yawned and stepped aside, and at the last ray of light {A} gave the {T} to {B}.
    {A} jumped over the {Z}, ran like the wind and gave the {T.c} to {B} just in time.
    In the end {A} asked nicely, the {Z} let {A.him} pass, and {A} gave the {T} to {B} before dark.
= sad
- puts A T P
    {A} came hours too late. {B} was gone, so {A} laid the {T} down {P.at} and wrote "sorry".
    When {A} got there it was dark and no one was waiting. {A} left the {T.c} {P.at}.
    It took until midnight. {B} had stopped hoping, and {A} put the {T} down {P.at} and went away.
= sad
- takes Z T
    Then the {Z} took the {T} between its teeth, and {A} had to explain it to {B}.
    {A} closed {A.her} eyes for one second, and the {Z} took the {T.c} and was gone.
    There was a short fight. Then the {Z} took the {T}, and {A} went home to say sorry to {B}.
= tense
-
    The sun was already touching the roofs, and neither {A} nor the {Z} had moved.
    It was getting cold, it was getting late, and the {Z} showed its teeth.

plot storm
- has A T; puts A T P
    {A} had {T.a} and kept it {P.at}.
    {A} owned {T.a}. It stood {P.at}, where everybody could admire it.
    {P.At} stood {T.a}, and it belonged to {A}.
    {A} had {T.a} and left it {P.at}, as the weather was fine.
- breaks T
    At night a storm came in without knocking and broke the {T}.
    Then it stormed for three days, and on the third the wind broke the {T.c}.
    Then there was thunder, there was a bang, and lightning broke the {T}.
- fetches A T; gives A B T
    {A} picked up the pieces and gave the {T} to {B}, who can mend anything but a promise.
    In the morning {A} picked it up and gave the {T} to {B}, who talks to broken things.
    {A} picked up what was left, ran to {B} and gave {B.him} the {T}.
- has B U
    {B} pushed {U.a} aside and put on very thick glasses.
    {B} had {U.a} on the bench and moved it to make room.
    At that time {B} also had {U.a} to look after, but this came first.
?aside
= glad
- mends B T; gives B A T
    {B} mended the {T} with three drops of glue and gave it back to {A}.
    By noon {B} mended it and gave the {T.c} to {A}, and now it even hummed.
    {B} sang to it, mended the {T} and gave it back to {A}, and one could hardly see the crack.
= sad
- gives B A U
    "No," said {B} at last, and gave {A} the {U} instead. It was kind, but it was not the same.
    Nothing could be done. {B} gave the {U.c} to {A}, who thanked {B.him} and looked at the floor.
    {B} tried all night. In the morning {B} gave {A} the {U}, but {A} wept for the other one.
= tense
-
    "Do not breathe," said {B}. The last piece hung in the air, and thunder rolled closer.
    One piece was missing, and outside, in the dark, the wind began again.
    It held, it held, and then there was the sound of a crack, and {A} grabbed the arm of {B}.

plot trip
- goes A P; goes B P
    {A} and {B} took the slow train and went to the {P}.
    On Saturday {A} went to the {P}, and {B} came too.
    {A} wanted to see something new, so {A} and {B} went to the {P}.
- has A T; has B U
    {A} had {T.a}, and {B} had {U.a}, for one never knows.
    {A} had packed only {T.a}, and {B} had packed only {U.a}.
    They had little with them: {A} had {T.a}, {B} had {U.a}, and that was all.
-
    Opposite sat {Z.a} with a ticket, which is more than they had.
    On the way {Z.a} took the best seat and would not discuss it.
    On the way {Z.a} told them its whole life, and it was a long one.
?aside
= calm
- puts B U P
    They sat in the sun, and {B} left the {U} {P.at} for whoever might need it.
    They did what one does there. {B} did not want to carry the {U} home and left it {P.at}.
    It was quiet. They ate bread, and {B} left the {U.c} {P.at}, as there is room for it.
= calm
- gives A B T
    Nothing happened, for hours. On the way home {A} gave the {T} to {B} to carry.
    They looked at things, and things looked at them. Later {A} gave {B} the {T.c} to carry.
    They walked, they sat, they walked. {A} gave the {T} to {B}, who had a free hand.
= glad
- gives B A U
    {A} had always hoped to see a whale. There it was! {B} was so moved that {B} gave {A} the {U}.
    They had wished for snow, and it snowed. "Take it," said {B}, and {B} gave the {U} to {A}.
    {A} had hoped for the {U} all the way, and on the way home {B} gave it to {A.him}.
= sad
- loses A T P
    They had come for the fireworks, but those had been on Friday, and {A} lost the {T} {P.at}.
    They had looked forward to it all year. It was closed, and {A} lost the {T.c} {P.at}.
    It rained on the bread, it rained on {B}, and worst of all {A} lost the {T} {P.at}.
= tense
- puts A T P
    {A} had put the {T} down {P.at}. Now the last train hissed, and {A} turned round and ran.
    When the fog came in, {A} put the {T} down {P.at} and called for {B}. There was no answer yet.
    {A} put the {T} down {P.at} and listened. That was not {B}, and it was coming closer.

plot borrow
- has A T
    {A} had {T.a}.
    {A} had {T.a} and a good heart.
    There was {T.a} that belonged to {A}.
    {A} had {T.a}, and everybody wanted it.
- gives A B T
    On Monday {A} gave the {T} to {B} for a week.
    {A} gave the {T} to {B}, just for the weekend.
    {B} asked so sweetly that {A} gave {B.him} the {T} until Friday.
- gives B C T
    On Tuesday {B} gave it to {C}, since {B} cannot say no.
    But {B} gave the {T} to {C} the next day, for half a pancake.
    Then {C} cried a little, and so {B} gave the {T} to {C}.
?aside
-
    {C} polished the {T.c} until it squeaked.
    {C} told everybody that the {T.c} was very old, which it was not.
    {C} showed it to {Z.a}, who was not impressed.
    {C} slept with the {T} under one arm.
= calm
- puts C T P
    In the end {C} put the {T} {P.at} and hung washing over it. {A} never asked.
    After some time {C} left it {P.at}, and as {A} had forgotten it, nobody minded.
    One day {C} put the {T} {P.at}. There it still is, and {A} walks past it and hums.
= glad
- gives C B T; gives B A T
    On Friday {A} badly needed it. {C} gave the {T} to {B}, {B} gave it to {A}, and all was well.
    "My {T.c}, please," said {A}. So {C} gave it to {B} and {B} gave it to {A}, who kissed it.
    {A} missed it more every day. At last {C} gave the {T} to {B}, and {B} gave it to {A}.
= sad
- loses C T P
    On Friday {A} wanted the {T} back, but {C} lost it {P.at}, and {A} learned to say no.
    Then {C} lost the {T.c} {P.at}. On Friday {A} waited for it at the window until night.
    {C} went for a walk and lost the {T} {P.at}, and {A} never got so much as a postcard.
= tense
-
    On Friday {A} asked for the {T}. {B} looked at {C}, and {C} looked at {C.her} shoes.
    "Where is it?" asked {A} on Friday. {C} began to sweat, and {B} took one step back.
    {A} came to get it. Behind the door {B} and {C} were whispering, and then they stopped.

plot guard
- has B T
    {B} had {T.a} and had to sleep for an hour.
    {B} had {T.a}, but {B} could no longer keep {B.her} eyes open.
    {B} had {T.a} and had been awake all night to look at it.
- gives B A T; goes A P
    "Watch it for me," said {B}, and gave the {T} to {A}, who went to the {P} with it.
    So {B} gave the {T} to {A}, and {A} went to the {P} to watch over it.
    {B} gave {A} the {T}, snored at once, and {A} went to the {P} with it on tiptoe.
-
    {A} sat down on a stone and took the work very seriously.
    {A} looked left, looked right, and looked at the {T.c} again.
    {A} walked round the {T.c} like a soldier and saluted it twice.
?aside
-
    Then {Z.a} came along and walked in circles, and the circles got smaller.
    Before long the bushes parted, and {Z.a} put its head out and looked at the {T}.
    After a while {Z.a} came and sat down opposite, and did not blink.
= calm
-
    It only wanted company, and before long {A} and the {Z} were snoring side by side.
    It sat there and {A} sat here, and they listened to the rain until the hour was over.
    It scratched itself, and {A} scratched {A.her} nose, and so the time went by.
= glad
- gives A B T
    {A} growled back, and the {Z} fled. When {B} woke up, {A} gave {B} the {T}.
    {A} told it a joke, and it left at once. Then {A} gave the {T.c} back to {B}.
    {A} was brave and said boo. The {Z} ran, {B} woke up, and {A} gave the {T} back to {B}.
= sad
- takes Z T
    {A} yawned once, only once, and the {Z} took the {T} and ran. {B} woke up and wept.
    {A} sneezed. The {Z} took the {T.c}, and {B} never lent {A} anything again.
    "What is that over there?" the {Z} seemed to say. {A} looked, and the {Z} took the {T}.
= tense
-
    It opened its mouth. {A} held the {T} tighter and counted: an hour has many minutes.
    The {Z} came closer. "Wake up," whispered {A}, but {B} did not hear.
    Then a second shadow came out from behind the {Z}, and {A} had only two hands.

plot tidy
- has A T; has A U
    {A} had {T.a} and {U.a}, and no room for either.
    {A} had too many things, and among them were {T.a} and {U.a}.
    On Saturday {A} began to tidy up. There were {T.a} and {U.a}, and dust in between.
- puts A T P
    First {A} put the {T} {P.at}.
    {A} carried the {T} out and left it {P.at}.
    {A} thought for an hour and then put the {T.c} {P.at}.
- puts A U Q
    The {U} was next, and {A} left it {Q.at}.
    After a rest {A} put the {U} {Q.at}.
    Then {A} put the {U.c} {Q.at} and wiped {A.her} face.
?aside
-
    {B} looked in and said that it was a start.
    {B} came to help and sat down on the softest heap.
    {B} watched from the window and gave advice about dust.
    {B} dropped in, ate an old sweet from the floor and praised the work.
= calm
-
    Then {A} lay down in the empty room and listened to how large it was.
    "Now there is room for something new," said {B}, and they had some tea.
    Then {A} swept the floor, and {B} held the dustpan, and that was Saturday.
= calm
- fetches B T; puts B T Q
    Later {B} picked up the {T} and put it {Q.at} as well, because things like company.
    In the evening {B} took a walk, picked up the {T.c} and left it {Q.at}, for the view.
= glad
- fetches B T; gives B A T
    At night {A} missed the {T} terribly. But {B} fetched it, and {B} gave the {T} back to {A}.
    By supper {A} would have cried for the {T.c}. Then {B} fetched it and gave it to {A}.
    {A} could not sleep without the {T}. So {B} fetched it in the rain and gave it to {A}.
= sad
- takes Z U
    The next day {A} longed for the {U}, but {Z.a} took it in the night and was far away by now.
    At noon {Z.a} took the {U.c} and moved into it, and {A}, who wanted it back, was bitten.
    {A} changed {A.her} mind about the {U} and ran to get it, but {Z.a} took it a minute before.
= tense
-
    At midnight something scratched at the door, and then it said, quite clearly, "{A}".
    In the night {A} woke up. Somebody was walking about, and {B} had gone home long ago.
    Then {B} pulled open the last drawer, went pale and pushed it shut with both hands.
"""
