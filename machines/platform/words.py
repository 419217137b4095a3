"""Words that a gift card's code is made of: 1024, lower case, each ten bits of chance.

Short and common, so that a code survives being read aloud.  The list may change: codes already
issued are kept as digests and do not depend on it.
"""

from __future__ import annotations

_TEXT = """
acid acorn actor adapt agent alarm album alder alert alley almond alpine amber anchor angle
ankle annex apple apron arch arena armor arrow artist aspen atlas attic audio autumn avenue
awake axis bacon badge bagel baker balance ballet bamboo banana banner barley barn basil basin
basket beacon beagle bean beaver bench berry bicycle birch bird biscuit bison blanket blend
blossom blue bonnet book boot bottle boulder bowl brave bread breeze brick bridge bright bronze
brook broom brother brush bubble bucket budget buffalo bugle builder bundle burrow butter button
buzz cabin cable cactus calm camel camera camp canal candle canoe canvas canyon captain caramel
cargo carpet carrot cartoon castle cedar cello cement cereal chair chalk chapel charm chart
cheese cherry chess chicken chimney choice choir cider cinema circle citrus city clay clever
cliff clinic clock cloud clover coach coast cobalt cocoa coffee collar comb comet compass
concert cookie copper coral corner cotton cougar county couple courage cousin coyote cradle
crane crater crayon credit cricket crisp crown crystal cube cuckoo cupola curtain curve cycle
cymbal daily dairy daisy damp dance dapple dawn deer delta denim depot desert design desk dial
diary digit dish diver doctor dolphin domain donkey door dragon drama dream dress drum duck dune
dust eager eagle earth easel east echo edge editor elbow elder elegant elm ember emerald empire
enamel engine enjoy entry envoy essay estate evening exhibit fabric falcon family famous fancy
farm feather fence fennel fern ferry festival fiber fiddle field figure film filter finch finger
finish fiord flag flame flannel flask flint float flock floor flower flute foam focus foil
folder forest forge fork fossil fountain fox frame freight fresh friend frost fruit funnel
future gadget galaxy gallery garage garden garlic garnet gate gentle geyser giant ginger giraffe
glacier glass gleam glide globe glove goat golden golf goose gown grain granite grape graph
grass gravel green grid group grove guava guest guide guitar gulf habit hammer hammock hamster
handle harbor harp harvest hatch haven hazel heart heather hedge helmet herald herb heron
hickory hill hinge hobby hockey hollow honey hood hope horizon horn horse hotel humble humor
hungry hunter hurdle iceberg icon idea igloo image inch indigo inlet input insect island item
ivory jacket jaguar jasmine jelly jersey jewel jigsaw jolly journal journey judge juice jumbo
jungle junior jury kayak keen kennel kettle key kind kingdom kiosk kitchen kite kitten knee knot
koala label ladder lagoon lake lamp lantern laptop larch large lasso laugh laurel lava lawn
layer leaf league leather ledge lemon lentil leopard lesson letter level library light lilac
lily lime linen lion liquid lizard lobby lobster local locket lodge logic lotus loyal lucky
lunar lunch lute lynx lyric machine magnet maize major mammal mango manor mantle maple marble
margin marine market marsh mason master match meadow medal medium mellow melody melon member
memory menu merit metal meteor meter method middle midnight mild mill mimosa mineral minnow mint
minute mirror mister mitten mixer mobile model modern modest module moment monarch monkey month
moose morning mosaic moss motor mountain mouse muffin mural muscle museum music mustard mutual
myrtle napkin narrow nation native nature navy nearby nectar needle nephew nest nettle neutral
never nickel night nimble noble noodle normal north notebook notion nougat novel number nutmeg
nylon oak oasis oat object ocean octave offer office olive omelet onion onyx opal open opera
orange orbit orchard orchid organ orient origin osprey otter outdoor outfit oval oven owl oyster
packet paddle page paint palace palm panda panel panther paper parade parcel parent park parrot
partner pasta pastel patch path patio pattern peach peanut pear pebble pecan pedal pelican
pencil penguin pepper perfect period petal phone photo piano picnic pigeon pillow pilot pine
pink pioneer pitcher planet plastic plate plaza plum pocket poem poet polar polish pond pony
poplar poppy porch portal possum postal potato pottery powder prairie present pretty prime prism
prize promise proud public puddle pulley pulse puma pumpkin puppet puppy purple puzzle pyramid
quail quarry quartz queen quest quick quiet quill quilt quince quiver quota rabbit raccoon
racket radar radio radish raft railway rain raisin ramp ranch rapid raven razor ready recipe
record red reef reflex region relay remark remote render repair report rescue resort rest ribbon
rice rider ridge ring ripple river roast robin robot rocket rodeo roof room root rope rose rotor
round route royal rubber ruby rudder rugby ruler rumble rural rustic saddle safari saffron sage
sail salad salmon salon salt salute sample sand sapling satin sauce scale scarf scene school
science scooter scout screen script seal season second secret seed select senior sequoia series
settle seven shade shadow shallow shamrock shape shell shelter shield shine ship shirt shoe
shore shovel shrimp shrub signal silent silk silver simple singer siren sister sketch skill sky
slate sleep slope smart smile smoke smooth snack snail snow soccer social socket soda sofa soft
solar solid sonar song sonnet soup south space spark sparrow spice spider spinach spiral spirit
splash sponge spoon sport spring spruce square squash squirrel stable stadium staff stage stamp
star station statue steam steel stem step stereo stone stool store stork storm story stove
stream street string studio subway sugar summer summit sunny sunset supper surf swallow swan
sweater swift symbol syrup table tablet tailor talent tango tanker tapestry target tassel tavern
teacher teapot temple tender tennis terrace texture theater theory thimble thistle thread three
throne thunder ticket tiger timber tinsel toast toffee tomato tonic topaz torch tortoise total
toucan tower town tractor trade trail train travel treasure treaty tribe tricycle trident
trolley trombone trophy tropic truck trumpet trunk tulip tundra tunnel turbine turkey turnip
turquoise turtle tuxedo twelve twig twin umbrella uncle uniform union unique unit universe upper
urban usual utensil vacuum valley value vanilla vapor velvet vendor venture verb verse vessel
viaduct video view villa village vine vintage violet violin visit vista vivid voice volcano
volume voyage waffle wagon walnut walrus waltz warbler warm water wave wealth weaver wedge
weekend western wheat wheel whistle white wicker widget willow window winter wise wizard wolf
wombat wonder wooden wool world wren writer yacht yard yarn yellow yoga yogurt young zebra
zenith zephyr zigzag zinc zipper zodiac zone
"""

WORDS: tuple[str, ...] = tuple(_TEXT.split())
