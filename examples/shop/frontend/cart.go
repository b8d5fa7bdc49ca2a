package main

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

const (
	cartCookie  = "cart"
	cartMax     = 50  // distinct products, as the backend allows
	quantityMax = 999 // of each
)

// Cart is what a customer is about to order: product id and quantity, in the order of adding. It lives in a cookie, so that any
// replica can serve any request.
type Cart []Item

// ReadCart takes the cart from the request; what cannot be read is left out.
func ReadCart(r *http.Request) Cart {
	c, err := r.Cookie(cartCookie)
	if err != nil {
		return nil
	}
	var cart Cart
	for part := range strings.SplitSeq(c.Value, ".") {
		id, quantity, _ := strings.Cut(part, "x")
		i, err1 := strconv.ParseInt(id, 10, 64)
		q, err2 := strconv.Atoi(quantity)
		if err1 == nil && err2 == nil {
			cart = cart.Add(i, q)
		}
	}
	return cart
}

// Add returns the cart with quantity more of the product; what would go beyond the limits is left out.
func (c Cart) Add(product int64, quantity int) Cart {
	if quantity < 1 || quantity > quantityMax {
		return c
	}
	c = slices.Clone(c)
	if i := slices.IndexFunc(c, func(it Item) bool { return it.ProductID == product }); i >= 0 {
		c[i].Quantity = min(c[i].Quantity+quantity, quantityMax)
		return c
	}
	if len(c) == cartMax {
		return c
	}
	return append(c, Item{ProductID: product, Quantity: quantity})
}

// Remove returns the cart without the product.
func (c Cart) Remove(product int64) Cart {
	return slices.DeleteFunc(slices.Clone(c), func(it Item) bool { return it.ProductID == product })
}

// Count is the number of pieces.
func (c Cart) Count() int {
	n := 0
	for _, it := range c {
		n += it.Quantity
	}
	return n
}

// Write sets the cookie; an empty cart deletes it.
func (c Cart) Write(w http.ResponseWriter) {
	parts := make([]string, len(c))
	for i, it := range c {
		parts[i] = strconv.FormatInt(it.ProductID, 10) + "x" + strconv.Itoa(it.Quantity)
	}
	cookie := &http.Cookie{Name: cartCookie, Value: strings.Join(parts, "."), Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode}
	if len(c) == 0 {
		cookie.MaxAge = -1
	}
	http.SetCookie(w, cookie)
}
