"""Synonyms in plain and clinical English, one group per line; NAMES are of the body, people and illnesses."""

GENERAL = """
symptom sign manifestation indication
cause reason etiology aetiology origin
cause causes lead trigger produce provoke
treat treatment therapy therapies therapeutic manage management remedy remedies cure
doctor physician clinician practitioner
prevent prevention avoid avert
diagnose diagnosis diagnosed detect detected identify identified
expect anticipate
outlook prognosis
urgent immediate emergency
seek get obtain look find
risk danger hazard
highest greatest biggest largest
begin start commence
end finish stop cease
help aid assist support
show display exhibit demonstrate reveal
describe explain outline
define mean meaning definition
name list state mention
kind type sort form variety
test exam examination
common frequent usual typical
quick fast rapid
hard difficult
need require
use utilise utilize employ
happen occur
important significant essential
best optimal
effect consequence result outcome impact
complication problem
increase raise elevate
decrease reduce lower diminish
work function operate
hurt injure harm damage
tired fatigued exhausted
complete full total
method technique approach way
eat consume ingest
care attention assistance
affect influence
indicate suggest imply point
distinguish differentiate discriminate separate
feature characteristic trait hallmark
characteristically classically typically usually normally generally commonly frequently often mostly
mechanism process pathway
danger hazard peril likelihood chance
give given administer prescribe
used employed utilised utilized applied
finding observation
typical classic classical characteristic
effective efficient efficacious successful
improve enhance ameliorate better
associate correlate relate link connect
predict forecast foretell foresee anticipate
forecast prognosis outlook
useful helpful valuable beneficial
compare contrast
evaluation assessment appraisal estimation
evaluate assess appraise gauge judge
analysis examination evaluation study
study investigation research trial
yield produce generate create make
include comprise contain encompass involve
change alteration modification variation
affect impact
medical clinical
immediate prompt instant
quickly rapidly swiftly promptly
prevalent widespread frequent
crucial vital critical essential important
information details facts data
know realise realize recognise recognize find
physician medic
breath breathe breathing respiration
fall drop decline diminish
rise climb grow increase
stay remain persist
choose select pick opt
suitable appropriate fitting proper
avoid evade shun
allow permit enable let
forbid prohibit
arise emerge originate stem result derive
develop evolve form
spread disseminate propagate
cease discontinue halt
frequency incidence occurrence rate
amount quantity volume
dose dosage
level concentration
location site place position
structure anatomy
combine merge unite
remove excise eliminate extract
insert introduce place
measure quantify determine
calculate compute
confirm verify establish validate
detect discover find notice
monitor track observe watch
screen check
check test
recommend advise suggest counsel propose
believe think consider
require demand necessitate
disadvantage drawback
advantage benefit merit
difference distinction disparity
different distinct dissimilar
similar alike comparable
example instance
reply answer response
question query
issue problem difficulty trouble
recover heal
die perish
fatal lethal deadly
survive live
lifespan longevity
exercise activity
specialist expert consultant
frequently regularly
rarely seldom infrequently
probably likely presumably
possible potential feasible
necessary required needed
enough sufficient adequate
several various numerous many multiple
entire whole
near close
far distant
underlie underpin
mediate convey
trigger precipitate elicit
classify categorise categorize group
assume suppose
ensure guarantee
contain hold
support aid sustain
account explain
reason explanation rationale
purpose aim goal objective
role function
source origin
stage phase
step phase
period interval duration
time duration
year annum
centre center facility
discover find locate
acquire obtain get
utility usefulness
accurate precise exact
reliable dependable
safe harmless
harmful dangerous damaging detrimental
strong powerful potent
weak feeble
thin slim
broad wide
rapid swift fast
slow gradual
finding result
increase boost grow climb heighten augment amplify
decrease cut shrink lessen dwindle drop
prevent forestall preclude
prevent stop block inhibit
treat handle tackle address
treatment care cure intervention
symptom complaint presentation
cause induce bring
prevalent endemic
emergency crisis
instant immediate urgent pressing
seek request pursue
assay test
examine inspect investigate
check examine
highest top maximum maximal
lowest bottom minimum minimal
risk odds susceptibility
expect await foresee
outlook future course
textbook classic typical
action effect
describe characterise characterize
regulate control govern modulate
release secrete discharge liberate
carry transport convey
trigger activate initiate
block inhibit suppress
damage destruction
enlarge expand
narrow constrict
widen dilate
helpful handy
relieve alleviate ease soothe palliate
help relieve
protect shield guard
suffer endure
occur arise
emerge appear
disappear vanish
rupture burst
leak seep
resist withstand
repair mend fix heal
normal healthy
abnormal anomalous aberrant atypical
abnormality anomaly aberration
unusual rare uncommon
hazardous dangerous risky
toxic poisonous
curable treatable
handle manage
monitor track follow
estimate approximate guess
explanation account
guideline recommendation
pattern trend
prevalence frequency
"""
NAMES = """
drug medicine medication medicament pharmaceutical
illness disease disorder condition sickness ailment
patient patients sufferer
child children kid kids
people persons individuals
big large
small little
surgery operation procedure
main principal primary chief
body organism
pain ache soreness discomfort
adult adults grownup grown ups
woman women female females
man men male males
early initial first earliest
major principal key main chief
bleed bleeding haemorrhage hemorrhage
heart cardiac
kidney renal nephric
liver hepatic
lung pulmonary
stomach gastric
brain cerebral
skin cutaneous dermal
cancer malignancy carcinoma tumour tumor neoplasm
severe serious grave
genetic hereditary inherited heritable
newborn neonate infant baby babies
elderly aged geriatric older senior
fever pyrexia
itch itching pruritus
swelling oedema edema
breathlessness dyspnoea dyspnea
weakness debility
contagious infectious communicable
lack absence deficiency shortage
deficiency insufficiency
excess surplus
recovery convalescence
death mortality
pregnant gravid expecting
birth delivery
obese overweight
food diet nutrition
drink beverage
sleep slumber
tablet pill
injection shot jab
vaccination immunisation immunization inoculation
vaccine jab
operation surgery
hospital clinic infirmary
illness sickness
wound injury lesion trauma
bone skeletal osseous
blood haematological hematological
vessel artery
nerve neural
muscle muscular
eye ocular
ear aural
mouth oral
nose nasal
tooth teeth dental
throat pharynx
bowel intestine gut
womb uterus
belly abdomen
abdominal stomach
chest thorax
back spine
sugar glucose
salt sodium
fat lipid
germ microbe
bacteria bacterium
persistent lasting
sudden abrupt
patient individual person subject case people
youngster child youth minor
nurse carer caregiver
woman women lady ladies
man men gentleman gentlemen
people folk folks
medical clinical health
early incipient
severe intense extreme
first foremost
drug pill agent
doctor gp
contagion infection
swallowing deglutition
urination micturition
vomiting emesis
nosebleed epistaxis
bruise contusion haematoma hematoma
fainting syncope
rash exanthem
hives urticaria
chickenpox varicella
shingles zoster
measles rubeola
whooping pertussis
lockjaw tetanus
jaundice icterus
baldness alopecia
sweating perspiration diaphoresis
clot thrombus
scar cicatrix
lump mass
anxiety nervousness
seizure convulsion fit
paralysis palsy
numbness anaesthesia anesthesia
hearing auditory
vision sight eyesight visual
smell olfactory
taste gustatory
tongue lingual
lip labial
cheek buccal
gum gingival
jaw mandible
neck cervical
arm brachial
wrist carpal
finger digital
rib costal
thigh femoral
knee patellar
ankle tarsal
foot feet
breast mammary
bladder vesical
vein venous
artery arterial
spleen splenic
thymus thymic
navel umbilicus
collarbone clavicle
kneecap patella
shinbone tibia
thighbone femur
breastbone sternum
windpipe trachea
gullet oesophagus esophagus
eardrum tympanum
afterbirth placenta
teenager adolescent
ageing aging senescence
"""
