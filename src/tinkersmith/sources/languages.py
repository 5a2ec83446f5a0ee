"""Which characters are usual in the languages that files are written in, to recognise encodings.

Each list is short on purpose: text in the right encoding is full of these characters, and text in a
wrong one has hardly any.
"""

from dataclasses import dataclass

# The most frequent characters of Chinese, simplified and traditional: over half of any text.
SIMPLIFIED = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行"
    "所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心本前开但因只从想实日军者意无力它"
    "与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或"
    "新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认"
    "条平系气题活尔更别打女变四神总何电数安少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保"
    "至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该"
    "交规万取拉格望觉术领共确传师观清今切院让识候带导争运请把句译成答写案步骤首先因此根据其中描述列举简单例如给定"
    "以下问题回答文章段落单词句子编写函数代码程序使用方法选项正确错误计算结果输入输出算法数据模型技术发展影响环境"
    "需要可以帮助提供信息健康学习工作生活时间方式重要包括能够通过进行我们他们这些主要人类社会经济文化历史地球植物"
    "动物故事朋友孩子城市公司产品市场客户服务语言英文中文翻译解释什么怎么为什么如何哪些请用一个关于生成创建"
)
TRADITIONAL = frozenset(
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作裡用道行"
    "所然家種事成方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心本前開但因只從想實日軍者意無力它"
    "與長把機十民第公此已工使情明性知全三又關點正業外將兩高間由問很最重並物手應戰向頭文體政美相見被利什二等產或"
    "新己制身果加西斯月話合回特代內信表化老給世位次度門任常先海通教兒原東聲提立及比員解水名真論處走義各入幾口認"
    "條平系氣題活爾更別打女變四神總何電數安少報才結反受目太量再感建務做接必場件計管期市直德資命山金指克許統區保"
    "至隊形社便空決治展馬科司五基眼書非則聽白卻界達光放強即像難且權思王象完設式色路記南品住告類求據程北邊死張該"
    "交規萬取拉格望覺術領共確傳師觀清今切院讓識候帶導爭運請把句譯成答寫案步驟首先因此根據其中描述列舉簡單例如給定"
    "以下問題回答文章段落單詞句子編寫函數代碼程式使用方法選項正確錯誤計算結果輸入輸出演算法數據模型技術發展影響環境"
    "需要可以幫助提供信息健康學習工作生活時間方式重要包括能夠通過進行我們他們這些主要人類社會經濟文化歷史地球植物"
    "動物故事朋友孩子城市公司產品市場客戶服務語言英文中文翻譯解釋什麼怎麼為什麼如何哪些請用一個關於生成創建您歡迎"
)
KANA = frozenset(map(chr, range(0x3041, 0x3097))) | frozenset(map(chr, range(0x30A1, 0x30FD)))
# Kanji that are frequent in Japanese.
KANJI = frozenset(
    "日一国人年大十二本中長出三時行見月分後前生五間上東四今金九入学高円子外八六下来気小七山話女北午百書先名川千水半"
    "男西電校語土木聞食車何南万毎白天母火右読友左休父雨会同事自社発者地業方新場員立開手力問代明動京目通言理体田主"
    "題意不作用度強公持野以思家世多正安院心界教文元重近考画海売知道集別物使品計死特私始朝運終台広住無真有口少町料"
    "工建空急止送切転研足究楽起着店病質待試族銀早映親験英医仕去味写字答夜音注帰古歌買悪図週室歩風紙黒花春赤青館屋"
    "色走秋夏習駅洋旅服夕借曜飲肉貸堂鳥飯勉冬昼茶弟牛魚兄犬妹姉漢説明文章次質問回答例以下計算数学結果方法必要関係"
    "可能性情報技術利用提供環境影響問題解決説明経済社会歴史文化植物動物世界成内部定現最全性対的化法政表要約選機合"
    "都市平和東京連実当相取度米民議加期員所面面力決点産第調制報"
)
# The most frequent syllables of Korean.
HANGUL = frozenset(
    "이다는을의에가고하지로한도는어기사은서자나아리그시대인를들해것으있라일여수정보면과니부만게구원제장주상오우스"
    "전유소트모공선비성안동조생미방신경내와무국문개실간때람거요려르했되됩할합음세데었연재당본관마위진치학계영화연"
    "적된각용물질명답변식통물교습니까시오세설명작번역단법결분두말더중행체환발양산건강식물물회외반별력설차두같러"
    "드터크야저너누네없않않았겠까든며던난른름및등또는바노래레초타파포표하호프트필요한글을세계역사을여러분방법"
)
# Punctuation and signs that several encodings share, and all languages use.
NEUTRAL = frozenset(
    "“”‘’„‚«»‹›–—…·•°©®™§¶€£¥×÷±½¼¾²³¹№†‡¿¡ªº´\u00a0\u00ad−≈≤≥≠√∞µ"
    "，。、；：？！（）《》〈〉「」『』【】〔〕～－＋＝％／＊＂＇．・…—　○●△▲□■◇◆☆★→←↑↓①②③④⑤⑥⑦⑧⑨⑩"
)


@dataclass(frozen=True, slots=True)
class Alphabet:
    """The letters of a language beyond ASCII, in lower case."""

    letters: str
    usual: str = ""  # the most frequent of them; none for languages in Latin letters
    has_case: bool = True
    vowels: str = ""  # no longer word lacks them; "" where they are not written, or are in ASCII
    signs: str = ""  # letters without which a text is hardly in this language

    @property
    def is_latin(self) -> bool:
        return not self.usual


ALPHABETS = {
    "German": Alphabet("äöüßé"),
    "French": Alphabet("àâæçéèêëîïôœùûüÿ"),
    "Spanish": Alphabet("áéíñóúü"),
    "Portuguese": Alphabet("áâãàçéêíóôõúü"),
    "Italian": Alphabet("àèéìîòù"),
    "Dutch": Alphabet("ëïéèöüáóê"),
    "Swedish": Alphabet("åäöé"),
    "Danish": Alphabet("æøåéó"),
    "Icelandic": Alphabet("áéíóúýþæöð"),
    "Catalan": Alphabet("àçèéíïòóúü·"),
    "Polish": Alphabet("ąćęłńóśźż"),
    "Czech": Alphabet("áčďéěíňóřšťúůýž"),
    "Slovak": Alphabet("áäčďéíĺľňóôŕšťúýž"),
    "Hungarian": Alphabet("áéíóöőúüű"),
    "Romanian": Alphabet("ăâîșțşţ"),
    "Croatian": Alphabet("čćđšž"),
    "Turkish": Alphabet("çğıöşüâîi̇"),
    "Lithuanian": Alphabet("ąčęėįšųūž"),
    "Latvian": Alphabet("āčēģīķļņšūž"),
    "Estonian": Alphabet("äõöüšž"),
    "Vietnamese": Alphabet("ăâđêôơưáàảãạéèíìóòúùý\u0300\u0301\u0303\u0309\u0323",
                           signs="ăđơư"),
    "Russian": Alphabet("абвгдеёжзийклмнопрстуфхцчшщъыьэюя", "оеаинтсрвлкмдпуяыьгз",
                        vowels="аеёиоуыэюя"),
    "Ukrainian": Alphabet("абвгґдеєжзиіїйклмнопрстуфхцчшщьюя", "оанивтрекслуідмпязь",
                          vowels="аеєиіїоуюя"),
    "Bulgarian": Alphabet("абвгдежзийклмнопрстуфхцчшщъьюя", "аоиентрсвлдпкмзугъ",
                          vowels="аеиоуъюя"),
    "Serbian": Alphabet("абвгдђежзијклљмнњопрстћуфхцчџш", "аоиенртсјувкдлпмзг", vowels="аеиоур"),
    "Greek": Alphabet("αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋΐΰ", "αοιετσνηυρπκμλςίόάέ",
                      vowels="αεηιουωάέήίόύώϊϋΐΰ"),
    "Hebrew": Alphabet("אבגדהוזחטיךכלםמןנסעףפץצקרשת", "יוהלארתבשמכנדםק", has_case=False),
    "Arabic": Alphabet("ءآأؤإئابةتثجحخدذرزسشصضطظعغـفقكلمنهوىيًٌٍَُِّْ،؛؟",
                       "اليمنوتربةعدفهكسقأ", has_case=False),
    "Thai": Alphabet("".join(map(chr, [*range(0x0E01, 0x0E3B), *range(0x0E40, 0x0E5B)])),
                     "านรกอเงมยลวดทสตะปบคหแจพขใไัี่้", has_case=False),
}  # fmt: skip
